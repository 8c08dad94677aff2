//! A node in as little memory as it takes: of a large source all of them are held at once.

use std::ffi::OsStr;

use rustic_core::jiff::Timestamp;
use rustic_core::repofile::{Metadata, Node, NodeType};

/// A node without its name. A plain one takes about 100 bytes, where the engine's takes 400.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum CompactNode {
    /// A file or directory without extended attributes.
    Plain(Plain),
    /// Anything else.
    Full(Box<Node>),
}

/// The metadata that [`super::node::of_entry`] gives a file or directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Plain {
    is_directory: bool,
    mode: Option<u32>,
    user: Option<u32>,
    group: Option<u32>,
    modified: Option<Timestamp>,
    changed: Option<Timestamp>,
    inode: u64,
    device: u64,
    size: u64,
    links: u64,
}

impl CompactNode {
    pub(crate) fn new(node: Node) -> Self {
        let plain = Plain::of(&node);
        // Whatever cannot be made again from the little is kept whole.
        if plain.node(&node.name()) == node {
            return Self::Plain(plain);
        }
        Self::Full(Box::new(node))
    }

    /// The node, whose name is `name`.
    pub(crate) fn node(&self, name: &OsStr) -> Node {
        match self {
            Self::Plain(plain) => plain.node(name),
            Self::Full(node) => node.as_ref().clone(),
        }
    }
}

impl Plain {
    fn of(node: &Node) -> Self {
        let meta = &node.meta;
        Self {
            is_directory: node.is_dir(),
            mode: meta.mode,
            user: meta.uid,
            group: meta.gid,
            modified: meta.mtime,
            changed: meta.ctime,
            inode: meta.inode,
            device: meta.device_id,
            size: meta.size,
            links: meta.links,
        }
    }

    fn node(&self, name: &OsStr) -> Node {
        let meta = Metadata {
            mode: self.mode,
            mtime: self.modified,
            atime: self.modified,
            ctime: self.changed,
            uid: self.user,
            gid: self.group,
            inode: self.inode,
            device_id: self.device,
            size: self.size,
            links: self.links,
            ..Metadata::default()
        };
        let kind = if self.is_directory { NodeType::Dir } else { NodeType::File };
        Node::new_node(name, kind, meta)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn file(meta: Metadata) -> Node {
        Node::new_node(OsStr::new("name\n"), NodeType::File, meta)
    }

    #[test]
    fn nodes_come_back_as_they_were() {
        let time = Some(Timestamp::from_second(7).unwrap());
        let meta = Metadata { mode: Some(0o640), mtime: time, atime: time, ..Metadata::default() };
        let changed = Metadata { ctime: time, size: 5, inode: 9, links: 2, ..meta.clone() };
        let attributed = {
            let value = serde_json::json!([{ "name": "user.x", "value": null }]);
            let extended_attributes = serde_json::from_value(value).unwrap();
            Metadata { extended_attributes, ..meta.clone() }
        };
        let link = NodeType::from_link(Path::new("target"));
        let directory = Node::new_node(OsStr::new("d"), NodeType::Dir, meta.clone());
        for (node, is_plain) in [
            (file(changed), true),
            (directory, true),
            (file(Metadata { atime: None, ..meta.clone() }), false),
            (file(attributed), false),
            (Node::new_node(OsStr::new("l"), link, meta), false),
        ] {
            let compact = CompactNode::new(node.clone());
            assert_eq!(matches!(compact, CompactNode::Plain(_)), is_plain, "{node:?}");
            assert_eq!(compact.node(&node.name()), node);
        }
        assert!(size_of::<CompactNode>() <= 112, "{}", size_of::<CompactNode>());
    }
}
