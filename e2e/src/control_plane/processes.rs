//! The command lines of the control plane.

use anyhow::Result;

use super::Layout;
use crate::daemon;
use crate::state::State;

/// Tests read from the audit log who asked for what.
const AUDIT_POLICY: &str = "apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
  - level: Metadata
";

pub(super) fn start_etcd(state: &State, layout: &Layout) -> Result<()> {
    let client = format!("https://127.0.0.1:{}", layout.ports.etcd);
    let peer = format!("http://127.0.0.1:{}", layout.ports.etcd_peer);
    start(
        state,
        layout,
        "etcd",
        [
            "--name=sandbox".to_owned(),
            format!("--data-dir={}", state.text("etcd")),
            format!("--listen-client-urls={client}"),
            format!("--advertise-client-urls={client}"),
            format!("--listen-peer-urls={peer}"),
            format!("--initial-advertise-peer-urls={peer}"),
            format!("--initial-cluster=sandbox={peer}"),
            format!("--cert-file={}", state.text("pki/etcd/server.crt")),
            format!("--key-file={}", state.text("pki/etcd/server.key")),
            format!("--trusted-ca-file={}", state.text("pki/etcd/ca.crt")),
            "--client-cert-auth".to_owned(),
            // The data of a sandbox need not survive a power failure.
            "--unsafe-no-fsync".to_owned(),
        ],
    )
}

pub(super) fn start_apiserver(state: &State, layout: &Layout) -> Result<()> {
    let audit_policy = state.write("audit-policy.yaml", AUDIT_POLICY)?;
    let pki = |file: &str| state.text(&format!("pki/{file}"));
    let mut flags = vec![
        format!("--bind-address={}", layout.address),
        format!("--advertise-address={}", layout.address),
        format!("--secure-port={}", layout.ports.apiserver),
        format!("--etcd-servers=https://127.0.0.1:{}", layout.ports.etcd),
        format!("--etcd-cafile={}", pki("etcd/ca.crt")),
        format!("--etcd-certfile={}", pki("apiserver-etcd-client.crt")),
        format!("--etcd-keyfile={}", pki("apiserver-etcd-client.key")),
        format!("--tls-cert-file={}", pki("apiserver.crt")),
        format!("--tls-private-key-file={}", pki("apiserver.key")),
        format!("--client-ca-file={}", pki("ca.crt")),
        format!("--kubelet-client-certificate={}", pki("apiserver-kubelet-client.crt")),
        format!("--kubelet-client-key={}", pki("apiserver-kubelet-client.key")),
        // Logs and exec would look up the node's name in DNS otherwise.
        "--kubelet-preferred-address-types=InternalIP".to_owned(),
        format!("--proxy-client-cert-file={}", pki("front-proxy-client.crt")),
        format!("--proxy-client-key-file={}", pki("front-proxy-client.key")),
        format!("--requestheader-client-ca-file={}", pki("front-proxy-ca.crt")),
        "--requestheader-allowed-names=front-proxy-client".to_owned(),
        "--requestheader-username-headers=X-Remote-User".to_owned(),
        "--requestheader-group-headers=X-Remote-Group".to_owned(),
        "--requestheader-extra-headers-prefix=X-Remote-Extra-".to_owned(),
        "--service-account-issuer=https://kubernetes.default.svc.cluster.local".to_owned(),
        format!("--service-account-key-file={}", pki("sa.pub")),
        format!("--service-account-signing-key-file={}", pki("sa.key")),
        format!("--service-cluster-ip-range={}", layout.services),
        "--authorization-mode=Node,RBAC".to_owned(),
        "--enable-admission-plugins=NodeRestriction".to_owned(),
        "--allow-privileged".to_owned(),
        format!("--audit-policy-file={}", audit_policy.display()),
        format!("--audit-log-path={}", state.log("audit").display()),
        // Megabytes; a rotated log would be cut off for the tests that read it.
        "--audit-log-maxsize=1000".to_owned(),
    ];
    if layout.address.is_loopback() {
        // A loopback address cannot be an endpoint, and no pod asks for it.
        flags.push("--endpoint-reconciler-type=none".to_owned());
    }
    start(state, layout, "kube-apiserver", flags)
}

pub(super) fn start_controllers(state: &State, layout: &Layout) -> Result<()> {
    let kubeconfig = |name: &str| format!("--kubeconfig={}", state.text(&format!("kubeconfigs/{name}.conf")));
    let mut flags = vec![
        kubeconfig("controller-manager"),
        format!("--service-account-private-key-file={}", state.text("pki/sa.key")),
        format!("--root-ca-file={}", state.text("pki/ca.crt")),
        format!("--cluster-signing-cert-file={}", state.text("pki/ca.crt")),
        format!("--cluster-signing-key-file={}", state.text("pki/ca.key")),
        "--use-service-account-credentials".to_owned(),
        "--leader-elect=false".to_owned(),
        "--bind-address=127.0.0.1".to_owned(),
        // The default of 20 requests per second doubles the time to start.
        "--kube-api-qps=200".to_owned(),
        "--kube-api-burst=400".to_owned(),
    ];
    if layout.namespace.is_none() {
        // Its usual port may belong to another control plane of the machine.
        flags.push("--secure-port=0".to_owned());
    }
    start(state, layout, "kube-controller-manager", flags)?;
    if layout.namespace.is_some() {
        let flags = [
            kubeconfig("scheduler"),
            "--leader-elect=false".to_owned(),
            "--bind-address=127.0.0.1".to_owned(),
        ];
        start(state, layout, "kube-scheduler", flags)?;
    }
    Ok(())
}

fn start(
    state: &State,
    layout: &Layout,
    program: &str,
    flags: impl IntoIterator<Item = String>,
) -> Result<()> {
    let mut command = Vec::new();
    if let Some(namespace) = &layout.namespace {
        command.extend(["nsenter".to_owned(), format!("--net={namespace}")]);
    }
    command.push(state.program(program).display().to_string());
    command.extend(flags);
    daemon::start(state, program, &command)?;
    Ok(())
}
