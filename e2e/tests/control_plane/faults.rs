//! The operator under faults: a fixed sample of all plans, and what no plan of
//! one write shows. All plans and the long scenarios: `cargo sandbox faults`.

use std::io::Write;

use e2e::faults::runner::{LENIENT, Runner};
use e2e::faults::scenarios::{Length, Scenario};
use e2e::faults::{self, Selection};
use e2e::progress::Progress;

/// How many plans fit the time of the test command: one of each step.
const SAMPLE: usize = 8;

#[tokio::test(flavor = "multi_thread")]
async fn whatever_fails_at_any_write_changes_nothing_in_the_end_and_lets_nobody_in() {
    let progress = Progress::default();
    let mut runner = Box::pin(Runner::start(LENIENT, &progress)).await.unwrap();
    let plans = Selection { sample: Some(SAMPLE), ..Selection::default() }.plans(&runner).unwrap();
    let mut report =
        Box::pin(faults::run_plans(std::slice::from_mut(&mut runner), plans, &progress)).await.unwrap();
    let short = |scenario: &Scenario| scenario.length == Length::Short;
    Box::pin(faults::run_scenarios(&mut runner, short, &mut report, &progress)).await.unwrap();
    report.calls = runner.rig.gate.calls();
    // Not by a macro, whose words are shown only when a test fails.
    writeln!(std::io::stderr(), "{report}").unwrap();
    report.check().unwrap();
}
