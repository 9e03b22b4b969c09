// Package export makes of any image one in OCI form, as it can stand in an OCI image layout
// (https://github.com/opencontainers/image-spec/blob/v1.1.1/image-layout.md) that every tool reads. It knows images as
// package imgsrc shows them, and nothing of where they are; it writes no files.
//
// # What becomes of an image
//
// An image that is in OCI form already, with all its blobs there, keeps its manifest to the byte. Any other gets a new
// manifest over the bytes of its config, which stay what they are: so the image id stays what it is. Its layers are those
// that the source has, under OCI's media types. Where the source keeps no compressed blobs (containers-storage), a layer is
// its uncompressed tar under its diff id. Annotations are kept, but for those that say where things are in a compressed
// blob that is not there. A layer whose digest is its diff id is not compressed, whatever the manifest calls it.
//
// A layer that need not be there (OCI's nondistributable, Docker's foreign) and is not, nor its tar, stays as a
// descriptor with its addresses, and without a blob.
//
// An index keeps its bytes if all of its images that are there keep theirs, and is in OCI's form. If others are not there it is
// its own original, which tells it from one that has lost them since. Otherwise it gets
// a new index of those that are there, in their order, with platforms and annotations as they are. An artifact keeps its
// bytes. A manifest of schema 1 gets the config that podman makes of it, whose digest is podman's id for it; the layers
// have to be read for that where the source has not recorded their diff ids.
//
// # The original
//
// Where the manifest is another than the source's, that one is kept beside it, as a blob, and [AnnotationOriginal] on the
// descriptor that leads to the new one says which. It is known by the digest of its bytes, which for a signed manifest of
// schema 1 is not what registries call its digest. A reader that knows the annotation can show, and put back, what there
// was; for others it is a blob that nothing refers to.
//
// # Archives
//
// [OCITar] and [DockerTar] are an image as a file, oci-archive and docker-archive: an [Archive], which nobody has written.
// It is a list of segments: headers, padding and documents in memory, and bodies that are read where they lie when
// somebody reads there. So it has its size before a layer is read, begins at once, and can be read from any offset on, by
// any number. A docker-archive's layers are uncompressed tars, or compressed with gzip, as the caller has them: both are what
// readers of the format take. What has the image's names comes last, since those may change: all before that then stays where it is. There
// are no `repositories` and no directories with a `json` of versions of Docker before 1.10: no tool of today reads them.
//
// [RootfsTar] is a merged tree as a tar, as docker export writes it, with PAX records for what ustar has no room for:
// times to the nanosecond, long names, large owners, extended attributes (SCHILY.xattr), sparse files (GNU.sparse, 1.0). A
// large image has a few hundred thousand headers, so only their places are kept.
//
// All headers are functions of the image: owner 0, the image's time, a fixed order. There is nothing of the machine in
// them.
//
// # What must hold
//
//   - The same image gives the same bytes: at any time, in any order, on any machine. Nothing depends on what else is there, but
//     for the images of an index.
//   - No layer is read, but for the diff ids of schema 1. Sizes are the manifest's, or what the source has recorded.
//   - What cannot be had to the byte is not made up: such an image is an error that says why. Bytes that are found to be
//     damaged when they are read are the reader's error.
package export
