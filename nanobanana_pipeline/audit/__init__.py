"""Whether everything in the bucket agrees, and what nothing in it refers to. Writes nothing."""

from nanobanana_pipeline.audit.audit import audit
from nanobanana_pipeline.audit.garbage import Waste, find_garbage
from nanobanana_pipeline.audit.report import AuditReport, Finding, FindingKind

__all__ = ["AuditReport", "Finding", "FindingKind", "Waste", "audit", "find_garbage"]
