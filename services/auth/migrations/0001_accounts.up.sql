-- A name is given once and never changes: it is the `sub` of tokens and
-- stands in relation tuples. Accounts are therefore not deleted either.
create table users (
    id uuid primary key,
    username text not null unique check (username ~ '^[a-z0-9][a-z0-9._-]{1,62}$'),
    password_hash text not null check (password_hash ~ '^\$2[aby]\$[0-9]{2}\$.{53}$'),
    created_at timestamptz not null default now()
);

-- Private keys: all replicas sign with the newest and publish the public part
-- of every key that is not retired. Who can read this table can sign tokens.
create table signing_keys (
    kid text primary key,
    algorithm text not null check (algorithm = 'RS256'),
    private_pem text not null,
    created_at timestamptz not null default now(),
    retired_at timestamptz
);
