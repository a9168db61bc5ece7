//! When a role gets another password, and which of its two logins has it. Pure.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use peristyle_crds::v1alpha1::database::Slot;

/// How often a login that is still in use after its time is looked at, at least.
const RECHECK: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(600));

/// When passwords change.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Policy {
    /// Time between two rotations; none when they happen on request only.
    pub interval: Option<Duration>,
    /// How long the login before keeps working.
    pub overlap: Duration,
}

/// What the Secret of a role says.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Published {
    /// The login it names.
    pub slot: Slot,
    /// Since when.
    pub since: Timestamp,
    /// The request that led to it.
    pub asked: Option<String>,
}

/// A login as the server has it.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Live {
    /// Whether it lets anybody in.
    pub is_open: bool,
    /// Sessions that use it.
    pub sessions: i64,
    /// Whether there are pods that know no other.
    pub is_held: bool,
}

/// What a role needs.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Step {
    /// Nothing: the Secret is right.
    Keep,
    /// Another password, as soon as the login before is not in use any more.
    Wait,
    /// The Secret must name this login.
    Publish(Slot),
}

/// Decides about one role.
///
/// `asked` is the request that the Database carries now. `recorded` is the
/// login whose password was written down last: if the Secret does not name it,
/// a rotation was begun and not finished. `live` tells of both logins.
#[must_use]
pub fn step(
    policy: Policy,
    asked: Option<&str>,
    published: Option<&Published>,
    recorded: Option<Slot>,
    live: impl Fn(Slot) -> Live,
    now: Timestamp,
) -> Step {
    let Some(published) = published else {
        // The Secret was lost, or never made: the password that was written down
        // is the one that clients have.
        let shut = [Slot::A, Slot::B].into_iter().find(|slot| !live(*slot).is_open);
        return Step::Publish(recorded.or(shut).unwrap_or_default());
    };
    let is_asked = asked.is_some_and(|asked| published.asked.as_deref() != Some(asked));
    let is_old = policy.interval.is_some_and(|interval| left(published.since, interval, now).is_zero());
    if !is_asked && !is_old {
        return Step::Keep;
    }
    let target = published.slot.other();
    if recorded == Some(target) || is_free(policy, published.since, live(target), now) {
        Step::Publish(target)
    } else {
        Step::Wait
    }
}

/// Whether the login that the Secret named before may be shut, or used again.
#[must_use]
pub fn is_free(policy: Policy, since: Timestamp, live: Live, now: Timestamp) -> bool {
    !live.is_open || (live.sessions == 0 && !live.is_held && left(since, policy.overlap, now).is_zero())
}

/// In how long a role has to be looked at. `before` is the login that the
/// Secret named before, `since` since when it does not.
#[must_use]
pub fn due(policy: Policy, since: Timestamp, before: Live, now: Timestamp) -> Option<Duration> {
    if before.is_open {
        let left = left(since, policy.overlap, now);
        let recheck = (policy.overlap / 8).clamp(RECHECK.0, RECHECK.1);
        return Some(if left.is_zero() { recheck } else { left });
    }
    policy.interval.map(|interval| left(since, interval, now))
}

/// How much of `length` is left at `now`. A beginning in the future, which only
/// an edit or a clock set back can make, counts as now.
fn left(since: Timestamp, length: Duration, now: Timestamp) -> Duration {
    let passed = now.duration_since(since).max(SignedDuration::ZERO);
    length.saturating_sub(passed.unsigned_abs())
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);
    const POLICY: Policy = Policy { interval: Some(Duration::from_secs(100 * 3600)), overlap: HOUR };
    const START: Timestamp = Timestamp::constant(1_000_000, 0);
    const SHUT: Live = Live { is_open: false, sessions: 0, is_held: false };
    const IDLE: Live = Live { is_open: true, ..SHUT };
    const USED: Live = Live { sessions: 2, ..IDLE };
    const HELD: Live = Live { is_held: true, ..IDLE };

    fn after(hours: i64) -> Timestamp {
        START + SignedDuration::from_hours(hours)
    }

    fn published(asked: Option<&str>) -> Published {
        Published { slot: Slot::A, since: START, asked: asked.map(ToOwned::to_owned) }
    }

    #[rstest]
    #[case::nothing_to_do(None, None, SHUT, 50, Step::Keep)]
    #[case::the_interval_is_over(None, None, SHUT, 100, Step::Publish(Slot::B))]
    #[case::asked(Some("1"), None, SHUT, 0, Step::Publish(Slot::B))]
    #[case::asked_and_done(Some("1"), Some("1"), SHUT, 50, Step::Keep)]
    #[case::asked_again(Some("2"), Some("1"), SHUT, 50, Step::Publish(Slot::B))]
    #[case::the_request_was_taken_back(None, Some("1"), SHUT, 50, Step::Keep)]
    #[case::the_other_is_within_its_time(Some("1"), None, IDLE, 0, Step::Wait)]
    #[case::the_other_is_in_use(Some("1"), None, USED, 50, Step::Wait)]
    #[case::pods_know_the_other(Some("1"), None, HELD, 50, Step::Wait)]
    #[case::the_other_is_over(Some("1"), None, IDLE, 50, Step::Publish(Slot::B))]
    fn a_published_role_changes_when_it_should(
        #[case] asked: Option<&str>,
        #[case] done: Option<&str>,
        #[case] other: Live,
        #[case] hours: i64,
        #[case] expected: Step,
    ) {
        let live = |slot| if slot == Slot::A { IDLE } else { other };
        let step = step(POLICY, asked, Some(&published(done)), Some(Slot::A), live, after(hours));
        assert_eq!(step, expected);
    }

    #[test]
    fn a_rotation_that_was_begun_is_finished_although_its_login_is_open() {
        let step = step(POLICY, Some("1"), Some(&published(None)), Some(Slot::B), |_| IDLE, after(0));
        assert_eq!(step, Step::Publish(Slot::B));
    }

    #[rstest]
    #[case::nothing_is_known(None, SHUT, Slot::A)]
    #[case::the_first_is_open(None, USED, Slot::B)]
    #[case::it_was_written_down(Some(Slot::A), USED, Slot::A)]
    fn a_role_without_a_secret_gets_the_recorded_login_or_a_free_one(
        #[case] recorded: Option<Slot>,
        #[case] first: Live,
        #[case] expected: Slot,
    ) {
        let live = |slot| if slot == Slot::A { first } else { SHUT };
        assert_eq!(step(POLICY, None, None, recorded, live, after(0)), Step::Publish(expected));
    }

    #[test]
    fn without_an_interval_nothing_happens_unasked() {
        let manual = Policy { interval: None, ..POLICY };
        let step = step(manual, None, Some(&published(None)), None, |_| SHUT, after(9_000));
        assert_eq!(step, Step::Keep);
        assert_eq!(due(manual, START, SHUT, after(1)), None);
    }

    #[test]
    fn the_next_look_is_when_something_is_due() {
        assert_eq!(due(POLICY, START, SHUT, after(40)), Some(HOUR * 60));
        assert_eq!(due(POLICY, START, USED, after(0)), Some(HOUR));
        assert_eq!(due(POLICY, START, USED, after(2)), Some(HOUR / 8));
        assert_eq!(due(POLICY, after(50), SHUT, after(0)), Some(HOUR * 100), "a clock that was set back");
    }
}
