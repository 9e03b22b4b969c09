// Package layout is the source of images that are kept as an OCI image layout
// (https://github.com/opencontainers/image-spec/blob/v1.1.1/image-layout.md): a directory with oci-layout, index.json
// and blobs, as skopeo, buildah, umoci and many builders write it. It reads the layout in place, and writes nothing but
// index.json, when an image is tagged. It neither adds blobs nor removes any. An Archive is such a directory in a tar
// archive, which is read in place too, and in which nothing can be tagged.
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
// # What was made from something else
//
// oci/ in a mount, and what is copied from it, has manifests that were put into OCI form, and beside them the originals, which
// the annotation io.github.imgfs.original-manifest of an entry of index.json names (package export). Such an image is listed as
// what it was, with that manifest's bytes and digest, if the original is over the same config and has the same layers: those
// are all there then. Otherwise, as of an image out of containers-storage, whose layers are kept uncompressed, what is there is
// listed, and knows its original ([imgsrc.Converted]). An index is listed as what it was if all of its images that are there
// are, and knows its original if each of them is what it was or knows that. The original is never listed beside what was made
// from it. What was made from several, as one manifest over gzip and one over zstd become the same in oci/, is listed for each;
// that it was there by itself, too, an entry says whose annotation names itself.
//
// # What must hold
//
//   - Files are read as package blobs says: nothing leads out of the layout, and no byte is returned that was not
//     verified. A layout that is built anew in another directory of the same path is the one that is read from then on.
//   - A change of tags replaces index.json by rename, so that every reader sees the old or the new one, whole. Nothing
//     that is not understood is lost: fields, annotations and the order of entries stay.
//   - Writers of this program exclude each other by flock on the layout's directory, which leaves no file behind. Other
//     tools lock nothing; index.json is compared once more right before the rename, and the change made anew if it was
//     replaced meanwhile. Other tools also write index.json in place, so a reader who finds it cut short, and young,
//     looks again.
package layout
