"""Examines everything apr depends on. Changes nothing; a failing part does not stop the others."""

from apr_devkit.doctor.examination import examine
from apr_devkit.doctor.finding import Finding, Part

__all__ = ["Finding", "Part", "examine"]
