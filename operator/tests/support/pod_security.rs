//! The Pod Security Standard "restricted", as far as Linux pods go, written
//! from <https://kubernetes.io/docs/concepts/security/pod-security-standards/>.

use serde_json::Value;

/// Volumes that "restricted" permits.
const VOLUMES: [&str; 8] = [
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "persistentVolumeClaim",
    "projected",
    "secret",
];
const SYSCTLS: [&str; 10] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.ping_group_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
];
const SELINUX_TYPES: [&str; 5] =
    ["", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"];

/// What in a pod template is forbidden.
pub fn violations(template: &Value) -> Vec<String> {
    let mut found = Vec::new();
    let spec = &template["spec"];
    for field in ["hostNetwork", "hostPID", "hostIPC"] {
        if is_true(&spec[field]) {
            found.push(field.to_owned());
        }
    }
    for volume in list(&spec["volumes"]) {
        let kinds =
            volume.as_object().into_iter().flat_map(|fields| fields.keys()).filter(|key| *key != "name");
        found.extend(
            kinds.filter(|kind| !VOLUMES.contains(&kind.as_str())).map(|kind| format!("volume {kind}")),
        );
    }
    for sysctl in list(&spec["securityContext"]["sysctls"]) {
        if !sysctl["name"].as_str().is_some_and(|name| SYSCTLS.contains(&name)) {
            found.push(format!("sysctl {}", sysctl["name"]));
        }
    }
    let annotations = template["metadata"]["annotations"].as_object();
    for (key, value) in annotations.into_iter().flatten() {
        let is_allowed = matches!(value.as_str(), Some("runtime/default" | ""))
            || value.as_str().is_some_and(|profile| profile.starts_with("localhost/"));
        if key.starts_with("container.apparmor.security.beta.kubernetes.io/") && !is_allowed {
            found.push(format!("annotation {key}"));
        }
    }
    let pod = &spec["securityContext"];
    context(pod, "pod", &mut found);
    let kinds = ["initContainers", "containers", "ephemeralContainers"];
    for container in kinds.iter().flat_map(|kind| list(&spec[kind])) {
        self::container(container, pod, &mut found);
    }
    found
}

/// What holds for the security context of a pod and of a container.
fn context(context: &Value, place: &str, found: &mut Vec<String>) {
    let mut forbid = |is_forbidden: bool, what: &str| {
        if is_forbidden {
            found.push(format!("{place}: {what}"));
        }
    };
    forbid(is_true(&context["windowsOptions"]["hostProcess"]), "hostProcess");
    forbid(context["runAsUser"] == 0, "runAsUser 0");
    forbid(context["runAsNonRoot"] == false, "runAsNonRoot false");
    let seccomp = &context["seccompProfile"]["type"];
    forbid(!seccomp.is_null() && seccomp != "RuntimeDefault" && seccomp != "Localhost", "seccompProfile");
    let app_armor = &context["appArmorProfile"]["type"];
    forbid(
        !app_armor.is_null() && app_armor != "RuntimeDefault" && app_armor != "Localhost",
        "appArmorProfile",
    );
    let se_linux = &context["seLinuxOptions"];
    forbid(!SELINUX_TYPES.contains(&se_linux["type"].as_str().unwrap_or_default()), "seLinuxOptions.type");
    for field in ["user", "role"] {
        forbid(!se_linux[field].as_str().unwrap_or_default().is_empty(), "seLinuxOptions.user or role");
    }
}

fn container(container: &Value, pod: &Value, found: &mut Vec<String>) {
    let own = &container["securityContext"];
    context(own, "container", found);
    let mut forbid = |is_forbidden: bool, what: &str| {
        if is_forbidden {
            found.push(format!("container: {what}"));
        }
    };
    forbid(is_true(&own["privileged"]), "privileged");
    forbid(own["allowPrivilegeEscalation"] != false, "allowPrivilegeEscalation");
    forbid(!list(&own["capabilities"]["drop"]).contains(&Value::from("ALL")), "capabilities.drop");
    forbid(
        list(&own["capabilities"]["add"]).iter().any(|capability| capability != "NET_BIND_SERVICE"),
        "capabilities.add",
    );
    let proc_mount = &own["procMount"];
    forbid(!proc_mount.is_null() && proc_mount != "Default", "procMount");
    let inherited = |field: &str| if own[field].is_null() { &pod[field] } else { &own[field] };
    forbid(inherited("runAsNonRoot") != true, "runAsNonRoot is not set");
    forbid(inherited("seccompProfile")["type"].is_null(), "seccompProfile is not set");
    let ports = list(&container["ports"]);
    forbid(ports.iter().any(|port| !matches!(port["hostPort"].as_u64(), None | Some(0))), "hostPort");
    let handlers = ["livenessProbe", "readinessProbe", "startupProbe"].map(|probe| &container[probe]);
    let hooks = ["postStart", "preStop"].map(|hook| &container["lifecycle"][hook]);
    for handler in handlers.into_iter().chain(hooks) {
        let hosts = ["httpGet", "tcpSocket"].map(|kind| handler[kind]["host"].as_str().unwrap_or_default());
        forbid(hosts.iter().any(|host| !host.is_empty()), "host of a probe or lifecycle hook");
    }
}

fn is_true(value: &Value) -> bool {
    value == true
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}
