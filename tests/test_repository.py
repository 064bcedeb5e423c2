"""The pages and files around the code: short enough, linked, and in agreement with each other and with the code."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import pytest
import yaml

import nnunetv2_pgl

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
WORKFLOW = ROOT / ".github" / "workflows" / "tests.yml"
HOOKS = ROOT / ".pre-commit-config.yaml"


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def prose(page: Path) -> str:
    """Without blocks of code, and without code inside sentences."""
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.S | re.M))


def commands(page: Path) -> str:
    return "\n".join(re.findall(r"^```bash\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.S | re.M))


def links(page: Path) -> Iterator[tuple[Path, str]]:
    """File and anchor of each link to a file of the repository."""
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if not link.startswith(("http:", "https:", "mailto:")):
            path, _, anchor = link.partition("#")
            yield (page.parent / path).resolve() if path else page, anchor


def anchors(page: Path) -> set[str]:
    """As GitHub makes them of headings: equal ones are numbered."""
    seen: Counter[str] = Counter()
    found = set()
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.S | re.M)
    for heading in re.findall(r"^#+ (.*)$", text, flags=re.M):
        plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower()
        slug = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        found.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
        seen[slug] += 1
    return found


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) < 1800


def test_the_readme_has_the_lines_that_install_demo_and_test() -> None:
    assert {"pip install . && pgl_demo", 'pip install -e ".[test]" && pytest'} <= set(
        commands(ROOT / "README.md").splitlines()
    )


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_and_anchors_resolve(page: Path) -> None:
    for target, anchor in links(page):
        assert target.exists(), f"{name_of(page)} links to {target}, which does not exist"
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target), f"{name_of(page)} links to #{anchor} of {target.name}"


@pytest.mark.parametrize("index", [ROOT / "docs" / "README.md", ROOT / "docs" / "results" / "README.md"], ids=name_of)
def test_every_page_is_in_its_index(index: Path) -> None:
    linked = {target for target, _ in links(index)}
    assert {page for page in index.parent.glob("*.md") if page != index} <= linked


def test_the_first_index_leads_to_the_second() -> None:
    assert ROOT / "docs" / "results" / "README.md" in {target for target, _ in links(ROOT / "docs" / "README.md")}
    assert ROOT / "docs" / "README.md" in {target for target, _ in links(ROOT / "README.md")}


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "CHANGELOG.md"], ids=name_of)
def test_files_and_commands_that_a_page_names_exist(page: Path) -> None:
    """CHANGELOG.md is about former versions, too."""
    text = page.read_text(encoding="utf-8")
    for path in re.findall(r"(?<![\w./$}])(?:tests|benchmarks|docs|nnunetv2_pgl|pretraining)/[\w./-]*\w", text):
        assert (ROOT / path.partition("::")[0]).exists(), f"{name_of(page)} names {path}"
    for file, test in re.findall(r"(tests/[\w/]+\.py)::(\w+)", text):
        assert f"def {test}(" in (ROOT / file).read_text(encoding="utf-8"), f"{name_of(page)} names {file}::{test}"
    for module in re.findall(r"python -m (benchmarks\.\w+)", text):
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), f"{name_of(page)} names {module}"
    for name in re.findall(r"`((?:nnunetv2_pgl|pretraining)\.[\w.]*\w)`", text):
        assert resolve_name(name) is not None, f"{name_of(page)} names {name}"
    scripts = set(re.findall(r"^(pgl_\w+) =", (ROOT / "pyproject.toml").read_text(encoding="utf-8"), flags=re.M))
    assert set(re.findall(r"^(pgl_\w+) ", commands(page), flags=re.M)) <= scripts


def test_messages_that_are_explained_are_those_of_the_code() -> None:
    """In docs/trouble.md, up to where a message has values."""
    text = (ROOT / "docs" / "trouble.md").read_text(encoding="utf-8")
    messages = [message for message in re.findall(r"^\| `([^`]+)` \|", text, flags=re.M) if "..." not in message]
    assert len(messages) > 3
    packages = (ROOT / "pretraining", ROOT / "nnunetv2_pgl")
    sources = [file.read_text(encoding="utf-8") for package in packages for file in package.rglob("*.py")]
    for message in messages:
        assert any(message in source for source in sources), message


def test_functions_of_the_equations_exist() -> None:
    """In docs/method.md, as modules of pretraining unless they say otherwise."""
    rows = re.findall(
        r"^\| (\d+) \|.*\| (.+) \|$", (ROOT / "docs" / "method.md").read_text(encoding="utf-8"), flags=re.M
    )
    assert [int(number) for number, _ in rows] == list(range(1, 11))
    for _, functions in rows:
        names = [name for name in re.findall(r"`([\w.]+)`", functions) if "." in name]
        assert names
        for name in names:
            assert resolve_name(name if name.startswith("nnunetv2_pgl.") else f"pretraining.{name}") is not None


def test_the_version_is_that_of_the_changelog_and_of_the_citation() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    version, date = re.findall(r"^## \[(\d[^]]*)\] - (\S+)$", changelog, flags=re.M)[0]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert version == nnunetv2_pgl.__version__ == citation["version"]
    assert date == citation["date-released"]
    assert changelog.index("## [Unreleased]") < changelog.index(f"## [{version}]")


def test_the_citation_has_what_its_schema_requires() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["cff-version"] == "1.2.0"
    assert citation["message"]
    assert citation["authors"] == [{"name": "The nnunetv2-pgl developers"}]
    for reference in citation["references"]:
        assert {"type", "title", "authors"} <= reference.keys()
    assert "10.48550/arXiv.2011.12640" in {reference["doi"] for reference in citation["references"]}


@pytest.fixture(scope="module")
def pyproject() -> dict[str, Any]:
    tomllib = pytest.importorskip("tomllib")  # Python 3.11
    content: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return content


def test_the_workflow_s_commands_exist(pyproject: dict[str, Any]) -> None:
    """Each is pip's, or that of a package which the extra that was installed before brings."""
    extras = pyproject["project"]["optional-dependencies"]
    markers = {marker.partition(":")[0] for marker in pyproject["tool"]["pytest"]["ini_options"]["markers"]}
    lines = []
    for job in yaml.safe_load(WORKFLOW.read_text(encoding="utf-8"))["jobs"].values():
        installed: set[str] = set()
        for command in (shlex.split(step["run"]) for step in job["steps"] if "run" in step):
            lines.append(command)
            if command[0] == "pip":
                (extra,) = re.findall(r"\.\[(\w+)\]", command[-1])
                wanted = [*extras[extra], *(extras["test"] if extra == "dev" else [])]
                installed |= {re.split(r"[^\w-]", package)[0] for package in wanted}
            else:
                assert command[0] in installed
                assert set(command[command.index("-m") + 1 :][:1] if "-m" in command else []) <= markers
    assert {command[0] for command in lines} == {"pip", "pytest", "ruff", "mypy"}


def test_the_workflow_tests_every_version_that_is_promised(pyproject: dict[str, Any]) -> None:
    matrix = yaml.safe_load(WORKFLOW.read_text(encoding="utf-8"))["jobs"]["fast"]["strategy"]["matrix"]
    start = "Programming Language :: Python :: 3."
    promised = [f"3.{line[len(start) :]}" for line in pyproject["project"]["classifiers"] if line.startswith(start)]
    assert matrix["python-version"] == promised
    assert pyproject["project"]["requires-python"] == f">={promised[0]}"


def test_the_hooks_are_pinned_and_their_commands_exist(pyproject: dict[str, Any]) -> None:
    repositories = yaml.safe_load(HOOKS.read_text(encoding="utf-8"))["repos"]
    hooks = [hook for repository in repositories for hook in repository["hooks"]]
    assert {"ruff-check", "ruff-format", "mypy"} <= {hook["id"] for hook in hooks}
    for repository in repositories:
        assert repository["repo"] == "local" or re.fullmatch(r"v\d+\.\d+\.\d+", repository["rev"])
    packages = {re.split(r"[^\w-]", line)[0] for line in pyproject["project"]["optional-dependencies"]["dev"]}
    assert {hook["entry"] for hook in hooks if "entry" in hook} <= packages
    assert "pre-commit" in packages
