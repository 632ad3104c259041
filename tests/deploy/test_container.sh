#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# test_container.sh ROOT: what the Containerfile copies exists, and the pod manifest holds together: a native sidecar,
# probes by ping (liveness by ping --alive), one socket path, one folder, one user, nothing privileged.
set -u

root=$1
status=0

# Sources of COPY, without those that come from another stage.
sed -n '/--from/d; s/^COPY //p' "$root/deploy/container/Containerfile" | while read -r line; do
    for word in ${line% *}; do
        [ -e "$root/$word" ] || echo "the Containerfile copies $word, which is not there"
    done
done | grep . && status=1
grep -q '^USER [1-9]' "$root/deploy/container/Containerfile" || {
    echo "the Containerfile does not end as a numeric user other than root"
    status=1
}
[ $status -eq 0 ] || exit 1
echo "Containerfile: sources exist"

if ! python3 -c 'import yaml' 2>/dev/null; then
    echo "python3 with yaml is not installed: the pod manifest was not checked"
    exit 77
fi
python3 - "$root" <<'END'
import sys

import yaml

root = sys.argv[1]
with open(root + "/deploy/kubernetes/sidecar.yaml") as text:
    pods = [pod for pod in yaml.safe_load_all(text) if pod]
with open(root + "/deploy/container/Containerfile") as text:
    containerfile = text.read()
with open(root + "/VERSION") as text:
    version = text.read().strip()

wrong = []


def check(fact, text):
    if not fact:
        wrong.append(text)


check(len(pods) == 1, "the manifest is one pod")
pod = pods[0]
check(pod["apiVersion"] == "v1" and pod["kind"] == "Pod", "the manifest is a v1 Pod")
spec = pod["spec"]
daemon = spec["initContainers"][0]
runner = spec["containers"][0]
check(daemon.get("restartPolicy") == "Always", "the daemon is a native sidecar")
ping = ["/usr/bin/mlacatctl", "ping"]
live = daemon["livenessProbe"]
check(daemon["startupProbe"]["exec"]["command"] == ping, "startupProbe is mlacatctl ping")
check(live["exec"]["command"] == ping + ["--alive"], "livenessProbe is mlacatctl ping --alive: full is not dead")
check(live["periodSeconds"] * live["failureThreshold"] > 35, "livenessProbe has patience for a drain")
check(live["timeoutSeconds"] > 1, "livenessProbe lets ping say itself that nobody answers, which takes a second")
check(spec.get("shareProcessNamespace") is True, "the process namespace is shared")
check(spec["terminationGracePeriodSeconds"] > 30, "the pod's grace is longer than the drain")

folders = [volume["name"] for volume in spec["volumes"] if "emptyDir" in volume]
user = spec["securityContext"]["runAsUser"]
check(user != 0 and spec["securityContext"]["runAsNonRoot"], "the pod does not run as root")
check("USER %d:%d" % (user, spec["securityContext"]["runAsGroup"]) in containerfile, "pod and image have one user")

for container in (daemon, runner):
    name = container["name"]
    socket = [item["value"] for item in container["env"] if item["name"] == "MLACAT_SOCKET"]
    mounts = [m for m in container["volumeMounts"] if m["name"] in folders]
    check(len(socket) == 1 and len(mounts) == 1, name + " has the socket's path and its folder")
    check(socket[0] == mounts[0]["mountPath"] + "/mlacatd.sock", name + " has its socket in the shared folder")
    check("ENV MLACAT_SOCKET=" + socket[0] + "\n" in containerfile, name + " has the image's socket path")
    check(container["image"].endswith(":" + version), name + " runs version " + version)
    context = container["securityContext"]
    check(context["allowPrivilegeEscalation"] is False, name + " cannot gain privileges")
    check(context["readOnlyRootFilesystem"] is True, name + " cannot write to its image")
    check(context["capabilities"]["drop"] == ["ALL"], name + " has no capabilities")
    check("runAsUser" not in context, name + " runs as the pod's user")

for text in wrong:
    print("sidecar.yaml: not true that " + text)
if wrong:
    sys.exit(1)
print("sidecar.yaml: holds together")
END
