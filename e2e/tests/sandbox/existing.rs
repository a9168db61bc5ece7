//! A cluster that exists already: what `up --kubeconfig` takes over, the demo
//! and the tests can call.

use e2e::calls::Edge;
use e2e::cluster::Cluster;
use e2e::example::{Example, GREETER};
use e2e::forward::Forward;
use e2e::progress::Progress;
use e2e::sandbox::{self, Wanted};
use e2e::state::State;
use tonic::Code;

#[tokio::test]
async fn the_edge_of_a_cluster_that_exists_is_reached_through_kubectl() {
    let example =
        Example::start(&State::current().unwrap()).await.expect("charts installed by the test command");
    let dir = tempfile::tempdir().unwrap();
    let adopting = State::at(dir.path()).unwrap();
    let wanted = Wanted::Existing { kubeconfig: example.cluster.kubeconfig().to_owned(), context: None };
    sandbox::up(&adopting, &wanted, &Progress::default()).await.unwrap();

    let forward = Forward::open(&Cluster::of(&adopting).unwrap()).await.unwrap();
    assert_ne!(Edge::on(forward.port).address(), example.edge.address());
    let refused = Edge::on(forward.port).greet(GREETER, None, "Ada").await.unwrap_err();
    assert_eq!((refused.code(), refused.message()), (Code::Unauthenticated, "authentication required"));
}
