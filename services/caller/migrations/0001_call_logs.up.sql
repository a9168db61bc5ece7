-- A row is written before the call and completed after it: there is no call
-- without a row.
create table call_logs (
    id uuid primary key,
    url text not null,
    outcome text not null default 'started' check (outcome in ('started', 'answered', 'refused', 'failed')),
    status_code integer check (status_code between 100 and 999),
    body_length bigint check (body_length >= 0),
    subject text,
    trace_id text not null,
    created_at timestamptz not null default now(),
    ended_at timestamptz,
    check ((outcome = 'answered') = (status_code is not null and body_length is not null)),
    check ((outcome = 'started') = (ended_at is null))
);

create index call_logs_created_at on call_logs (created_at);
