# Source me from bash:  . ./setup_shell.sh
# Makes and activates .venv with requirements.txt (installed once per change of it or of pyproject.toml), moves to the
# repository, and sets MUJOCO_GL (an off-screen renderer), GOMP_SPINCOUNT and TORCHINDUCTOR_VEC_ISA_OK where they are not
# set. Also sourced by every cluster job; two at once wait for each other.
# shellcheck shell=bash

_ipl_setup() {
    local root python version stamp uv log verb="activated"
    root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd) || return 1
    cd "$root" || return 1

    stamp=.venv/.requirements
    python=${PYTHON:-python3}
    if _ipl_ready; then python=.venv/bin/python; fi  # what it was installed with
    version=$(_ipl_version "$python") || {
        echo "setup_shell: no working '$python' found; install Python 3.11 to 3.13, or set PYTHON=/path/to/python3" >&2
        return 1
    }
    # mujoco 3.3.0 has wheels for these
    "$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || {
        echo "setup_shell: Python $version does not fit, 3.11 to 3.13 is needed; set PYTHON=/path/to/python3.13" >&2
        return 1
    }

    # The lock lets one of several jobs install while the others wait.
    if ! _ipl_ready; then
        log=$root/.setup.log
        (
            if command -v flock >/dev/null; then flock 9; fi
            _ipl_ready && exit 0
            echo "setup_shell: installing requirements.txt into .venv (a minute or two; log: .setup.log)" >&2
            : >"$log"
            fail() { tail -n 5 "$log" >&2; echo "setup_shell: $1 failed, see .setup.log" >&2; exit 1; }
            # Another Python, or a folder that was copied or moved with its .venv: made anew. One of the user's own is kept.
            if ! _ipl_version .venv/bin/python >/dev/null || { [ -e "$stamp" ] && ! _ipl_fits; }; then
                "$python" -m venv --clear .venv >>"$log" 2>&1 || fail "python -m venv .venv"
            fi
            .venv/bin/python -m pip --version >/dev/null 2>&1 || .venv/bin/python -m ensurepip >>"$log" 2>&1 || fail "python -m ensurepip"
            uv=$(_ipl_uv 2>>"$log") || echo "no uv: pip installs" >>"$log"
            # shellcheck disable=SC2086  # a command in words
            install() { { [ -n "$uv" ] && $uv "$@"; } >>"$log" 2>&1 || .venv/bin/python -m pip install "$@" >>"$log" 2>&1 || fail "pip install $*"; }
            install -r requirements.txt
            # shellcheck disable=SC2046  # one word a package
            install --no-deps $(sed -n 's/^#no-deps: *//p' requirements.txt)
            install --no-deps -e .
            _ipl_stamp >"$stamp"
        ) 9>.setup.lock || return 1
        verb="installed and activated"
    fi
    # shellcheck disable=SC1091
    . .venv/bin/activate || return 1
    version=$(_ipl_version python) || { echo "setup_shell: .venv has no working python; remove it" >&2; return 1; }

    # robosuite insists on EGL unless told otherwise; with glx every environment runs on a machine without any GL
    # library, but cannot render.
    if [ -z "${MUJOCO_GL:-}" ]; then
        if _ipl_has libEGL.so && _ipl_has -e libOpenGL.so -e libGL.so; then MUJOCO_GL=egl; elif _ipl_has libOSMesa.so; then MUJOCO_GL=osmesa; else MUJOCO_GL=glx; fi
    fi
    export MUJOCO_GL
    if [ "$MUJOCO_GL" = egl ] || [ "$MUJOCO_GL" = osmesa ]; then export PYOPENGL_PLATFORM=${PYOPENGL_PLATFORM:-$MUJOCO_GL}; fi
    # OpenMP's threads wait in loops before they sleep. Long loops (the default) make two runs that share their cores 4 to
    # 26 times as slow; with short ones a run alone takes about a tenth longer, where waking up is dear.
    export GOMP_SPINCOUNT=${GOMP_SPINCOUNT:-300}
    # torch.compile builds and loads test programs for each of the processor's vector extensions; without that the first
    # compilation on a machine takes 26 s instead of 35. (It still tries AMX, which old compilers do not know.)
    export TORCHINDUCTOR_VEC_ISA_OK=${TORCHINDUCTOR_VEC_ISA_OK:-1}
    echo "setup_shell: $verb .venv (Python $version), MUJOCO_GL=$MUJOCO_GL" >&2
}

_ipl_version() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null; }

_ipl_stamp() { cat requirements.txt pyproject.toml | cksum; }  # what is installed

# Whether .venv was made here (a copy of it would run the code of the first) and with the Python that is asked for.
_ipl_fits() {
    # shellcheck disable=SC1091
    [ "$(. .venv/bin/activate 2>/dev/null && echo "$VIRTUAL_ENV")" -ef .venv ] || return 1
    local version
    version=$(_ipl_version .venv/bin/python) || return 1
    [ -z "${PYTHON:-}" ] || [ "$(_ipl_version "$PYTHON")" = "$version" ]
}

_ipl_ready() { [ "$(cat .venv/.requirements 2>/dev/null)" = "$(_ipl_stamp)" ] && _ipl_fits; }

# The command by which uv installs, with pip's settings, which uv does not read; it takes far less time than pip. The
# same builds come: both choose the best of all indexes. Fails where uv cannot be had or a setting has no word in uv.
_ipl_uv() {
    # shellcheck disable=SC2046  # one word a package
    .venv/bin/python -m pip install --quiet $(sed -n 's/^#installer: *//p' requirements.txt) >&2 || return 1
    .venv/bin/python -m pip config list | .venv/bin/python -c '
import ast, sys
OPTIONS = {name: "--" + name for name in ("index-url", "extra-index-url", "find-links", "constraint", "no-binary", "only-binary")}
OPTIONS["trusted-host"] = "--allow-insecure-host"
VARIABLES = {"cert": "SSL_CERT_FILE", "proxy": "ALL_PROXY", "timeout": "UV_HTTP_TIMEOUT", "default-timeout": "UV_HTTP_TIMEOUT"}
HARMLESS = "disable-pip-version-check cache-dir config-file no-color no-input progress-bar quiet retries root-user-action".split()
settings, words = {}, [".venv/bin/uv", "pip", "install", "--python", ".venv/bin/python", "--index-strategy", "unsafe-best-match",
                       "--compile-bytecode"]  # as pip does: where Python may write none, every start would compile torch
lines = [line.strip().partition("=") for line in sys.stdin]
for section in ("global.", "install.", ":env:."):  # the last one counts
    settings |= {name.removeprefix(section): ast.literal_eval(value).split() for name, _, value in lines if name.startswith(section)}
for name, values in settings.items():
    words += [word for value in values for word in (OPTIONS[name], value)] if name in OPTIONS else []
    words = [f"{VARIABLES[name]}={values[0]}", *words] if name in VARIABLES else words
    if not {name} & {*OPTIONS, *VARIABLES, *HARMLESS}:
        sys.exit(f"pip has the setting {name}")
print("env", *words)'
}

# not grep -q: under pipefail ldconfig would fail when grep ends first
_ipl_has() { { ldconfig -p 2>/dev/null || /sbin/ldconfig -p 2>/dev/null; } | grep "$@" >/dev/null; }

_ipl_setup
