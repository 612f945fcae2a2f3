"""The pages of deploy/ name nothing that is not there: links, files, options of our own command."""

from __future__ import annotations

import re
import sys

import pytest

from tests.deploy.shipped import DEPLOY, ROOT, run

every_page = pytest.mark.parametrize("page", ["README.md", "SIZING.md"])


def test_its_links_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", (DEPLOY / "README.md").read_text())
    assert links
    assert [link for link in links if not (DEPLOY / link).exists()] == []


@every_page
def test_its_files_and_modules_are_there(page: str) -> None:
    text = (DEPLOY / page).read_text()
    files = re.findall(r"(?<![\w/.-])((?:deploy|tests|grafana)/[\w./-]*\w)", text)
    made = {"deploy/compose/.env"}  # by new-env.sh
    assert [file for file in files if file not in made and not (ROOT / file).exists()] == []
    modules = re.findall(r"-m (tests\.[\w.]+)", text)
    assert [module for module in modules if not (ROOT / f"{module.replace('.', '/')}.py").is_file()] == []


def test_its_commands_exist() -> None:
    known = set(
        re.findall(r"^  ([a-z-]+) ", run(sys.executable, "-m", "proxy", "--help", cwd=ROOT).stdout, re.MULTILINE)
    )
    used = re.findall(r"(?:-- |exec sluice |bin/|--rm )sluice ([a-z-]+)", (DEPLOY / "README.md").read_text())
    assert {"usage", "keys"} <= set(used)
    assert set(used) <= known, known
