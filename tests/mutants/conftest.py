"""Makes the mutants and the operator's shared checks importable by name (test folders are not packages)."""

import importlib.util
import sys
from pathlib import Path

FOLDER = Path(__file__).parent
CHECKS = FOLDER.parent / "plugins" / "augmented_attention"

for name, path in {
    "operator_oracle": CHECKS / "oracle.py",
    "operator_cases": CHECKS / "cases.py",
    "operator_checks": CHECKS / "checks.py",
    "operator_two_sided": CHECKS / "two_sided.py",
    "operator_kernel_call": CHECKS / "gpu" / "kernel_call.py",
    "operator_kernel_cases": CHECKS / "gpu" / "kernel_cases.py",
    "operator_kernel_build": CHECKS / "gpu" / "emulated_build.py",
    "mutant_damage": FOLDER / "damage.py",
    "mutant_catalogue": FOLDER / "catalogue.py",
    "mutant_kernel_catalogue": FOLDER / "kernel_catalogue.py",
    "mutant_kernel_verdict": FOLDER / "kernel_verdict.py",
}.items():
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        sys.modules[name] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
