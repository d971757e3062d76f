//! Hosts the servers: disk threads, roles, configuration, status.
