//! What people write.

use std::path::Path;

use milonga::ClientConfig;
use milonga_node::ProcessConfig;

pub(crate) fn process(data: &[u8]) {
    let path = Path::new("node.toml");
    if let Ok(text) = str::from_utf8(data)
        && let Ok(config) = ProcessConfig::parse(text, path)
    {
        let again = ProcessConfig::parse(&config.to_toml(), path);
        assert_eq!(again.expect("as it was read"), config);
    }
}

pub(crate) fn client(data: &[u8]) {
    if let Ok(text) = str::from_utf8(data)
        && let Ok(config) = ClientConfig::parse(text, Path::new("client.toml"))
    {
        assert!(!config.layout_servers.is_empty());
        let _ = config.deadline();
    }
}
