"""What is simulated: a protein from a name, a sequence or a file, all-atom in implicit or explicit solvent, or as a CA
model."""

from entk_app.systems.build import BuiltSystem, build_system, write_system
from entk_app.systems.catalogue import CATALOGUE, KnownSystem

__all__ = ["CATALOGUE", "BuiltSystem", "KnownSystem", "build_system", "write_system"]
