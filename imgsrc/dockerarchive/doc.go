// Package dockerarchive is the source of images in an archive that docker save, podman save and many builders write: a tar
// with manifest.json, configs and layers. It is read in place, at the places of its members; one that is compressed as a
// whole is decompressed once, into the cache. Nothing in it can be tagged.
//
// # What is listed
//
// Every entry of manifest.json, in its order, with its RepoTags as they stand. The format has no image manifests, so one is
// made, always the same: Docker's schema 2 over the config's exact bytes. A layer that lies there uncompressed is named by
// its diff id, as containers/image does it, so that skopeo says the same digest for such an archive. A compressed one is
// named by its own digest, which its file's name holds or its bytes are hashed for, so that it stays the blob that it is.
//
// An archive that has a whole OCI layout beside manifest.json, as today's docker save writes it, is package layout's: that
// has the images' own manifests.
//
// A layer that is missing is in the manifest without a size, under the digest that its file's name says or else its diff id: who
// reads it hears that it is missing, and the rest of the image is there.
//
// An entry that cannot be made sense of (a config that is missing, another number of layers than of diff ids) is listed as
// damaged if its config can be read, and is a problem of the listing otherwise.
//
// # What must hold
//
// As in package blobs: a config is verified against its digest where its name holds one, a layer's bytes before the first
// of them is returned.
package dockerarchive
