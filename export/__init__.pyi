from .engine import Engine as Engine
from .engine import load as load
from .manifest import read_manifest as read_manifest
from .pipeline import export as export
from .proof import VerificationError as VerificationError
from .proof import verify as verify
