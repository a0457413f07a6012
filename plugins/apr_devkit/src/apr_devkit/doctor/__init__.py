"""Looks at everything apr depends on. Changes nothing, and no part of it stops another one."""

from apr_devkit.doctor.examination import examine
from apr_devkit.doctor.finding import Finding, Part

__all__ = ["Finding", "Part", "examine"]
