"""Puts the workflow into the wheel, so that `ontogeny run` works without a checkout.

Everything else about the package stands in pyproject.toml.
"""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

WORKFLOW = (
    "Snakefile", "config.yaml", "envs/*", "experiments/*", "profiles/*/*", "rules/*", "schemas/*",
)  # fmt: skip


class BuildWithWorkflow(build_py):
    """Copies the workflow to ontogeny/workflow too; an editable package reads it here."""

    def run(self) -> None:
        """Build the package."""
        super().run()
        if self.editable_mode:
            return
        for path in (path for pattern in WORKFLOW for path in sorted(Path().glob(pattern))):
            if path.is_file():
                target = Path(self.build_lib, "ontogeny", "workflow", path)
                self.mkpath(str(target.parent))
                self.copy_file(str(path), str(target))


setup(cmdclass={"build_py": BuildWithWorkflow})
