drop table signing_keys;
drop table users;
