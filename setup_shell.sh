# Source me from bash:  . ./setup_shell.sh
# Makes and activates .venv with requirements.txt (installed once per change of it or of pyproject.toml), moves to the
# repository, and sets MUJOCO_GL (an off-screen renderer), GOMP_SPINCOUNT and TORCHINDUCTOR_VEC_ISA_OK where they are not
# set. Also sourced by every cluster job; two at once wait for each other.
# shellcheck shell=bash

_ipl_setup() {
    local root python version stamp want line log verb="activated"
    root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd) || return 1
    cd "$root" || return 1

    want=$(cat requirements.txt pyproject.toml | cksum)
    stamp=.venv/.requirements
    python=${PYTHON:-python3}
    if [ "$(cat "$stamp" 2>/dev/null)" = "$want" ]; then python=.venv/bin/python; fi  # what it was installed with
    version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || {
        echo "setup_shell: no working '$python' found; install Python 3.11 to 3.13, or set PYTHON=/path/to/python3" >&2
        return 1
    }
    # mujoco 3.3.0 has wheels for these
    "$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || {
        echo "setup_shell: Python $version does not fit, 3.11 to 3.13 is needed; set PYTHON=/path/to/python3.13" >&2
        return 1
    }

    # The stamp names what is installed; the lock lets one of several jobs install while the others wait.
    if [ "$(cat "$stamp" 2>/dev/null)" != "$want" ]; then
        log=$root/.setup.log
        (
            if command -v flock >/dev/null; then flock 9; fi
            [ "$(cat "$stamp" 2>/dev/null)" = "$want" ] && exit 0
            echo "setup_shell: installing requirements.txt into .venv (about two minutes; log: .setup.log)" >&2
            : >"$log"
            fail() { tail -n 5 "$log" >&2; echo "setup_shell: $1 failed, see .setup.log" >&2; exit 1; }
            .venv/bin/python -m pip --version >/dev/null 2>&1 || "$python" -m venv --clear .venv >>"$log" 2>&1 || fail "python -m venv .venv"
            .venv/bin/python -m pip install -r requirements.txt >>"$log" 2>&1 || fail "pip install -r requirements.txt"
            line=$(sed -n 's/^#no-deps: *//p' requirements.txt)
            # shellcheck disable=SC2086  # one word a package
            .venv/bin/python -m pip install --no-deps $line >>"$log" 2>&1 || fail "pip install --no-deps" $line
            .venv/bin/python -m pip install --no-deps -e . >>"$log" 2>&1 || fail "pip install -e ."
            echo "$want" >"$stamp"
        ) 9>.setup.lock || return 1
        verb="installed and activated"
    fi
    # shellcheck disable=SC1091
    . .venv/bin/activate || return 1
    version=$(python -c 'import sys; print("%d.%d" % sys.version_info[:2])')

    # robosuite insists on EGL unless told otherwise; with glx every environment runs on a machine without any GL
    # library, but cannot render.
    if [ -z "${MUJOCO_GL:-}" ]; then
        if _ipl_has libEGL.so; then MUJOCO_GL=egl; elif _ipl_has libOSMesa.so; then MUJOCO_GL=osmesa; else MUJOCO_GL=glx; fi
    fi
    export MUJOCO_GL
    if [ "$MUJOCO_GL" = egl ] || [ "$MUJOCO_GL" = osmesa ]; then export PYOPENGL_PLATFORM=${PYOPENGL_PLATFORM:-$MUJOCO_GL}; fi
    # OpenMP's threads wait in loops before they sleep. Long loops (the default) make two runs that share their
    # cores 4 to 26 times as slow; short ones make a run alone slow where waking up is dear, as on virtual machines.
    export GOMP_SPINCOUNT=${GOMP_SPINCOUNT:-2000}
    # torch.compile builds and loads test programs for each of the processor's vector extensions; without that the first
    # compilation on a machine takes 26 s instead of 35. (It still tries AMX, which old compilers do not know.)
    export TORCHINDUCTOR_VEC_ISA_OK=${TORCHINDUCTOR_VEC_ISA_OK:-1}
    echo "setup_shell: $verb .venv (Python $version), MUJOCO_GL=$MUJOCO_GL" >&2
}

# not grep -q: under pipefail ldconfig would fail when grep ends first
_ipl_has() { { ldconfig -p 2>/dev/null || /sbin/ldconfig -p 2>/dev/null; } | grep "$1" >/dev/null; }

_ipl_setup
