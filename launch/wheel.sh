#!/bin/sh
# What a release must hold: makes sdist and wheel, installs the wheel into an empty environment, and
# trains, samples and evaluates there with the shipped configs by name, the checkout out of sight.
# What passed is left in dist/. About three minutes on two CPU cores, most of them installation.
#   sh launch/wheel.sh
set -eu
cd "$(dirname "$0")/.."
. launch/env.sh

checkout=$(pwd)
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
# Nothing of the shell that called may lead back to the checkout.
unset PYTHONPATH PYTHONHOME VIRTUAL_ENV

fail() {
  echo "error: $1" >&2
  exit 1
}

say() {
  echo "== $1"
}

# Both build the sdist first and the wheel from it, not from the checkout: a file that the sdist
# lacks is then missing below.
make_environment() {
  base=$(find_python)
  if command -v uv >/dev/null 2>&1; then
    uv build --quiet --python "$base" --out-dir "$place/dist"
    uv venv --quiet --python "$base" "$place/env"
  else
    "$base" -m venv "$place/builder"
    "$place/builder/bin/python" -m pip install --quiet --disable-pip-version-check build
    "$place/builder/bin/python" -m build --outdir "$place/dist" >"$place/build.log" 2>&1 || {
      cat "$place/build.log" >&2
      fail "sdist and wheel could not be built"
    }
    "$base" -m venv "$place/env"
  fi
}

# pip in the empty environment, or what stands for it.
pip() {
  if command -v uv >/dev/null 2>&1; then
    verb=$1
    shift
    uv pip "$verb" --python "$place/env/bin/python" "$@"
  else
    "$place/env/bin/python" -m pip --disable-pip-version-check "$@"
  fi
}

# jax_mdlm COMMAND ...: runs a command of the installed package.
jax_mdlm() {
  command=$1
  shift
  say "python -m jax_mdlm.$command $*"
  "$place/env/bin/python" -m "jax_mdlm.$command" "$@"
}

# names FILE: what an archive holds, without its own first folder.
names() {
  case $1 in
    *.whl) "$place/env/bin/python" -m zipfile --list "$1" | sed '1d; s/ .*//' ;;
    *) tar -tzf "$1" | sed 's|^[^/]*/||' ;;
  esac | sort
}

say "sdist, and the wheel from the sdist"
make_environment
sdist=$(echo "$place"/dist/jax_mdlm-*.tar.gz)
wheel=$(echo "$place"/dist/jax_mdlm-*.whl)
names "$wheel" | grep -v '\.dist-info/' >"$place/wheel"
{
  find jax_mdlm -type f -not -path '*/__pycache__/*'
  find configs -type f -not -path '*/__pycache__/*' | sed 's|^|jax_mdlm/|'
} | sort >"$place/expected"
diff "$place/expected" "$place/wheel" >&2 ||
  fail "the wheel must hold jax_mdlm/ and configs/ and nothing else: < is missing, > is too much"
names "$wheel" | grep -q '\.dist-info/licenses/LICENSE$' || fail "the wheel must hold LICENSE"
if [ -d .git ]; then
  names "$sdist" >"$place/sdist"
  git ls-files | sort | comm -23 - "$place/sdist" >"$place/missing"
  [ ! -s "$place/missing" ] || fail "the sdist lacks $(tr '\n' ' ' <"$place/missing")"
fi
echo "$(wc -l <"$place/wheel") files in $(basename "$wheel"), $(wc -c <"$wheel") bytes"

say "jax-mdlm[demo] into an empty environment"
pip install --quiet "jax-mdlm[demo] @ file://$wheel"
pip check
mkdir "$place/empty"
cd "$place/empty"
version=$(sed -n 's/^__version__ = "\(.*\)"$/\1/p' "$checkout/jax_mdlm/__init__.py")
"$place/env/bin/python" - "$version" <<'PYTHON'
import importlib.util
import sys
from importlib import metadata
from pathlib import Path

import jax_mdlm
from jax_mdlm import command
from jax_mdlm.experiments import sweep

home = Path(jax_mdlm.__file__).parent
assert home.is_relative_to(sys.prefix), f"{home} is not of {sys.prefix}"
found = {metadata.version("jax-mdlm"), jax_mdlm.__version__}
assert found == {sys.argv[1]}, f"the version must be {sys.argv[1]}, found {found}"
for package in ("torch", "tensorflow"):
    assert importlib.util.find_spec(package) is None, f"{package} was installed"
configs = sorted(path.stem for path in (home / "configs").glob("*.py"))
for name in configs:
    other = {"merge": "slack_only", "slack_only": "merge"}
    collapse = command.parse_config(name, []).objective.collapse
    for preset in ("ce", other[collapse]):
        command.parse_config(f"{name}:{preset}", [])
lists = sorted(path.stem for path in (home / "configs" / "experiments").glob("*.py"))
for name in lists:
    for words in command.load_function(f"experiments/{name}", "get_runs")().values():
        sweep.parse_run(words)
assert "pronounce" in configs and "paper" in lists
print(f"jax_mdlm {jax_mdlm.__version__}, Python {sys.version.split()[0]}, "
      f"jax {metadata.version('jax')}, no torch, no tensorflow")
print(f"configs: {', '.join(configs)}; experiments: {', '.join(lists)}")
PYTHON

if jax_mdlm sample --workdir runs/pronounce word 2>error; then
  fail "sample must refuse a folder that is not there"
fi
cat error
grep -q -- '--config pronounce --workdir runs/pronounce$' error || fail "which names no next step"
jax_mdlm train --config pronounce --workdir runs/pronounce --config.train.steps=5 \
  --config.train.batch_size=8 --config.train.evaluate_rows=8 --config.train.tensorboard=false
jax_mdlm sample --workdir runs/pronounce alignment slacken
jax_mdlm sample --workdir runs/pronounce --html page.html alignment
grep -q '</html>' page.html || fail "page.html is not whole"
jax_mdlm evaluate pronunciations --workdir runs/pronounce --split test --limit 16
jax_mdlm convert export runs/pronounce exported
[ -s exported/model.safetensors ] || fail "exported/model.safetensors is missing"
if jax_mdlm train --config llada_ctc --workdir runs/llada 2>error; then
  fail "train --config llada_ctc must ask for data"
fi
cat error
grep -q '^error: .*set --config.data.files' error || fail "llada_ctc did not get as far as its data"

cd "$checkout"
mkdir -p dist
rm -f dist/jax_mdlm-*
mv "$place"/dist/* dist/
say "dist/: $(basename "$sdist") $(basename "$wheel")"
