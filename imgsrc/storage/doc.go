// Package storage is the containers-storage backend: the images of podman, buildah, skopeo and CRI-O, read where they lie.
//
// # Reading
//
// The store's own files are read directly, without its library: images.json and layers.json list what there is, a
// directory per image holds its manifests and its config, <id>.tar-split.gz is a layer's tar without the bodies, and the
// bodies are the files of the layer's directory. Every one of these files is replaced by rename(2), so that a reader
// always sees one whole state. The library would take the store's locks for the same answers, and those are held for as
// long as somebody saves, pushes or unpacks a layer: a read would hang then, without regard to its context.
//
// What must hold:
//   - Reading takes no lock, writes nothing and leaves no trace; it works on a read-only file system, needs no
//     privileges beyond the right to read the files (a user namespace, where they are a container's users'), and keeps
//     nothing that a crash could leave behind.
//   - No bytes are returned that were not verified: manifests and configs against their digests, the bodies of a
//     layer against the length and the CRC-64 that tar-split recorded, whenever the file's identity has changed since.
//   - Names that come out of an image are opened only below its layer's directory, by openat2(2) with that directory as
//     the root, or through [os.Root]. That directory is opened without following links from the driver's on ("overlay",
//     "vfs"): the graph root and the driver's directory may be links, and what is in it cannot lead out of the store.
//   - Work that several readers share (indexing a layer, verifying a large body) runs once, in the source's own context.
//
// # Layers
//
// An [index] is what a layer's tar-split says, packed: the headers' raw bytes and the bodies' names, lengths and
// checksums in compressed blocks of some 64 KiB, with the offset in the tar at which each block begins. A read at any
// offset unpacks the one block that it falls into; only the bytes of bodies come from the disk.
//
// A layer's files are listed from tar-split too, and read under their own names; a layer without tar-split is walked: then
// what lies on the disk is all that is known, and is not verified.
//
// # Writing
//
// An image is received through the library, too: see [Source.Receive]. Layers wait in a directory of ours, which the next
// process removes if this one is killed (tempdir.go). The library unpacks them and puts each into the store as it comes; a
// layer that was being unpacked when its process was killed is marked in the store, and removed by whoever next writes there.
//
// Who receives, tags or removes, and waits for a store that another program has locked, can leave (locked.go, change.go).
// Names are changed through the library, which is opened for that moment. Nothing else is written. Those of an image of an
// additional store are in a record of its id in the first store: see recorded.
//
// # Ordinary users
//
// The store of an ordinary user has files of his subordinate ids, which he may not read outside of a user namespace, nor
// make. A [keeper] works for him there: a child of this process, in which the same code runs as for root. What the user may
// read by himself is read here.
//
// The package does not push or mount, and does not list layers that no image uses. Layers that cannot be
// put together again from tar-split (partial pulls, composefs, layers without tar-split) are absent as a tar.
package storage
