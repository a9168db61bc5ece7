//! The operator under faults: a fixed sample of all plans. All of them:
//! `cargo sandbox faults`.

use e2e::faults::{self, Selection};

/// How many plans fit the time of the test command.
const SAMPLE: usize = 40;

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_or_a_lost_reply_at_any_write_changes_nothing_in_the_end() {
    let report = faults::run(&Selection { id: None, sample: Some(SAMPLE) }).await.unwrap();
    report.check().unwrap();
    assert!(report.passed > report.not_reached.len() * 10, "hardly any fault happened: {report}");
}
