"""Imports go down only: a module imports from its own layer's allowed places and from the layers below."""

import ast
from pathlib import Path

import winnow

ROOT = Path(winnow.__file__).parent

# from the bottom up; a file may import files of lower layers, and of its own layer only where `LEVEL` says so
LAYERS = [
    ["errors"],
    ["groups", "penalties", "schedules", "starts", "noise", "hold"],
    ["trace"],
    ["units"],
    ["counts"],
    ["smaller"],
    ["packed", "formats"],
    ["files", "export", "measure"],
    ["runtime", "curve"],
    ["factors"],
    ["routes.moment"],
    ["routes.base"],
    ["routes.factored"],
    ["routes.decay", "routes.dropout", "routes.gating", "routes.hyperbolic", "routes.latent", "routes.masking",
     "routes.variational"],
    ["routes", "cut"],
    ["sites", "fused", "watch", "census", "certificate", "checkpoint"],
    ["stage"],
    ["host"],
    ["run", "recipes"],
    ["ladder"],
    ["", "__init__"],
    ["jobs"],
    ["compare"],
    ["papers", "page"],
    ["cli"],
]


PACKAGES = ("penalties", "schedules", "jobs", "papers", "page", "compare", "cli", "trace", "smaller")


def module_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def layer_of(module):
    fits = [(len(name), level) for level, names in enumerate(LAYERS) for name in names
            if name and (module == name or module.startswith(name + "."))]
    return max(fits)[1] if fits else LAYERS.index(["", "__init__"]) if module == "" else None


def imports(path):
    module = module_of(path)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.split(".")[0] == "winnow")
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
                base = ".".join(["winnow", *package[: len(package) - node.level + 1]])
                name = f"{base}.{node.module}" if node.module else base
            elif (node.module or "").split(".")[0] == "winnow":
                name = node.module
            else:
                continue
            for alias in node.names:
                inner = ROOT.joinpath(*name.split(".")[1:], alias.name)
                yield f"{name}.{alias.name}" if inner.with_suffix(".py").exists() or inner.is_dir() else name


def violations():
    for path in sorted(ROOT.rglob("*.py")):
        module = module_of(path)
        here = layer_of(module)
        for name in imports(path):
            there = layer_of(name.removeprefix("winnow").removeprefix("."))
            package = module.split(".")[0]
            inside = name.removeprefix("winnow.").split(".")[0] == package and package in PACKAGES
            if here is None or there is None or not (there < here or inside):
                yield f"{module} imports {name}"


def test_every_module_has_a_layer():
    assert [module_of(p) for p in ROOT.rglob("*.py") if layer_of(module_of(p)) is None] == []


def test_imports_go_down_only():
    assert list(violations()) == []


def test_the_check_can_fail(tmp_path, monkeypatch):
    bad = tmp_path / "winnow"
    (bad / "routes").mkdir(parents=True)
    (bad / "routes" / "gating.py").write_text("from winnow.routes.masking import Masking\n")
    (bad / "groups.py").write_text("import winnow.run\n")
    monkeypatch.setitem(globals(), "ROOT", bad)
    assert sorted(violations()) == ["groups imports winnow.run", "routes.gating imports winnow.routes.masking"]
