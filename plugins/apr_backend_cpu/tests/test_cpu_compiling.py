"""Where compiled kernels are kept."""

from __future__ import annotations

import hashlib
from pathlib import Path

import apr_backend_cpu
from apr_backend_cpu import activations
from apr_backend_cpu.compiling import CACHE_DIR
from apr_backend_cpu.vector_ir import DOT_MODE


def test_compiled_code_is_kept_by_the_sources_and_not_by_where_they_lie():
    folder = Path(activations.quantize_rows._cache.cache_path)
    assert str(Path(apr_backend_cpu.__file__).parent) not in str(folder)
    assert folder.parent == Path(CACHE_DIR)
    digest = hashlib.sha256()
    for source in sorted(Path(apr_backend_cpu.__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    assert folder.parent.name == f"cpu-{DOT_MODE}-{digest.hexdigest()[:12]}"
