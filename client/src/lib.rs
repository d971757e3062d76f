//! The client: append, read, settle, follow, over replica chains.
