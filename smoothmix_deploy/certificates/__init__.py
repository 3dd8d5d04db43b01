"""Certificate files (`certs.jsonl`): the one place that writes, reads and signs them.

First line a manifest, then a line an image, in data-set order; in a signed file a seal is the last line. The manifest
and a line's counts are enough to recompute its radius. Append-only: a killed run leaves whole lines and at most one torn
line, which a resumed run drops. Knows nothing about engines or sampling.
"""

from .lines import FORMAT_VERSION, Certificate, Manifest, Seal
from .reading import CertificateFile, CorruptFile, is_certificate_file, read_certificates
from .writing import CertificateWriter, refuse_if_locked

__all__ = [
    "FORMAT_VERSION",
    "Certificate",
    "CertificateFile",
    "CertificateWriter",
    "CorruptFile",
    "Manifest",
    "Seal",
    "is_certificate_file",
    "read_certificates",
    "refuse_if_locked",
]
