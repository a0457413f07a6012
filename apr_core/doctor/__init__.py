"""Looks at everything apr depends on. Changes nothing, and no part of it stops another one."""

from apr_core.doctor.examination import Finding, Part, examine

__all__ = ["Finding", "Part", "examine"]
