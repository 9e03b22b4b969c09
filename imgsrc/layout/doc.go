// Package layout is the source of images that are kept as an OCI image layout
// (https://github.com/opencontainers/image-spec/blob/v1.1.1/image-layout.md): a directory with oci-layout, index.json
// and blobs, as skopeo, buildah, umoci and many builders write it. It reads the layout in place, and writes nothing but
// index.json, when an image is tagged. It neither adds blobs nor removes any.
//
// # What is listed
//
// Every manifest and every index that index.json names, each once, in the order of index.json; then, without names,
// what the indexes hold, down to a depth of 8. Docker's formats count as well. A manifest that is missing, or is not
// what its descriptor says, is listed under its digest with Desc.Damaged: the rest of the layout is as good as before.
// An entry that names no manifest at all (another media type, no digest) is a problem of the listing.
//
// A name is the annotation org.opencontainers.image.ref.name, as it stands, because tools put anything there: a tag, a
// full reference, a file name. Where an entry has io.containerd.image.name, which is how docker save and containerd
// write the full reference beside the bare tag, that is the name instead. Several entries for one manifest are its
// several names.
//
// # What must hold
//
//   - Everything is opened below the layout's directory (os.Root), and nothing but regular files is read: a blob that
//     is a link out of the layout, a FIFO or a device is damage.
//   - No byte is returned that was not verified. Manifests and configs are read whole and hashed. A layer's file is
//     hashed once, before its first byte is returned, and again when the file is not the same any more (device, inode,
//     size, mtime, ctime); the images that share it share that, too. Compressed layers are verified by the pass of
//     package layer that decompresses them.
//   - Hashing runs on the source's own context: a reader who leaves does not stop it, and others wait for the same pass.
//   - A change of tags replaces index.json by rename, so that every reader sees the old or the new one, whole. Nothing
//     that is not understood is lost: fields, annotations and the order of entries stay.
//   - Writers of this package exclude each other by flock on the layout's directory, which leaves no file behind. Other
//     tools lock nothing; index.json is compared once more right before the rename, and the change made anew if it was
//     replaced meanwhile. Other tools also write index.json in place, so a reader who finds it cut short, and young,
//     looks again.
package layout
