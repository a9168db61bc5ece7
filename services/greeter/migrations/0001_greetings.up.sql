create table greetings (
    id uuid primary key,
    name text not null check (char_length(name) between 1 and 200),
    message text not null,
    subject text,
    external_status integer not null check (external_status >= 0),
    external_body_length bigint not null check (external_body_length >= 0),
    context jsonb not null default '{}' check (jsonb_typeof(context) = 'object'),
    created_at timestamptz not null default now()
);

create index greetings_created_at on greetings (created_at);

-- Finds greetings by what else is known of the call: language, trace, version.
create index greetings_context on greetings using gin (context jsonb_path_ops);
