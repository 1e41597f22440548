# Sourced by the launch scripts: makes .venv and installs this checkout into it.
# POSIX sh; needs Python >= 3.11 with pip (uv is used when present).

find_python() {
  for candidate in "${PYTHON:-}" python3.13 python3.12 python3.11 python3 python; do
    [ -n "$candidate" ] || continue
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  echo "error: Python 3.11 or newer is needed and was not found; install it or set PYTHON" >&2
  return 2
}

# install EXTRA: an editable install with an extra; skipped while pyproject.toml has not changed.
install() {
  stamp=".venv/installed-$1"
  if [ -f "$stamp" ] && cmp -s "$stamp" pyproject.toml; then
    return
  fi
  echo "installing jax_mdlm[$1] into .venv (a minute or two)" >&2
  if command -v uv >/dev/null 2>&1; then
    [ -x .venv/bin/python ] || uv venv --quiet --python "$(find_python)" .venv
    uv pip install --quiet --python .venv/bin/python -e ".[$1]"
  else
    [ -x .venv/bin/python ] || "$(find_python)" -m venv .venv
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --use-pep517 -e ".[$1]"
  fi
  cp pyproject.toml "$stamp"
}
