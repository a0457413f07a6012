"""Qwen3.5 for apr: gated attention, gated delta net."""
