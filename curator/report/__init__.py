"""A run as one HTML page that opens anywhere: no script, no request, and every name in it inert."""

from curator.report.report import Report, report

__all__ = ["Report", "report"]
