//! Images from a registry and from archives, hostile ones among them.
