drop table call_logs;
