// Package daemon is the source docker-daemon:[REF]: the images of a Docker engine, read through its API, at DOCKER_HOST
// or the default socket. Engines since Docker 19.03 can be read (API 1.40), and podman's service, which speaks the same.
//
// # Listing
//
// The engine lists its images and containers, and each image that is new is inspected once. That is what "docker images"
// shows: no intermediate images of a build. An image's id is what "docker images --no-trunc" has: its config's digest,
// or with the containerd image store the digest of its manifest or index. Names are written in full: what docker calls
// web:1 is docker.io/library/web:1.
//
// # What is told
//
// From that inspection an image has a sketch (imgsrc.Sketch), until its bytes are here: when it was made, its diff ids, and those
// values of its config that the inspection gives to the byte. Seen with Docker 20.10 and 29, with both image stores:
//
//   - What is empty there ("", null, [], {}, or left out) may be absent from the config or empty in it, so it is not told.
//   - Created is written anew: 00:00:00.120Z becomes 00:00:00.12Z, +00:00 becomes Z, no time may be the year 1. The moment is
//     right always; the text is told if it has all nine digits.
//   - Os is the engine's own if the config has none. It is told with the architecture, without which no image is made.
//   - Comment is the last step's if the config has none; of a health check an engine leaves out what it does not know. Of these
//     it is told at most that there is one. So it is with the history, of which the API has neither digits nor authors.
//
// The API of podman's service shows other things where a config is unusual: of its images nothing is told. A config with another
// notation of the time, or without a system, is found when it has been saved; package fs then shows what that says.
//
// # Saving
//
// Of an image's manifest, config and layers the API gives the exact bytes by "docker save" only, all at once. So the first one
// who wants any of them causes one save, on the source's own context: whoever leaves does not stop it, and whoever comes
// meanwhile waits for the same one. The engine's answer goes into a file without a name, in the cache's directory. From
// there the layers go into the cache of package layer, which verifies each against its diff id; then the file is gone.
// It takes the image's size on the disk, beside the layers in the cache. Config, manifest and the layers' sizes are
// kept in a small file of their own, so that no later mount needs a save for them. A layer that has been evicted from the
// cache costs another save when it is read again; whether it would is what Local says (imgsrc.Fetcher).
//
// Of an image without layers the engine has no save to give.
//
// # The manifest
//
// With the containerd image store an engine keeps the manifest, and the blobs as they were pulled. The manifest here is that
// one, to the byte; of an index (which the id then names) it is the one of the platform that the engine saves. Its layers
// are kept uncompressed, as with the other engines, so Blob has none of those that are compressed.
//
// Other engines keep no manifest. The one here is then what containers/image makes for docker-daemon, to the byte:
// Docker's schema 2, over the config and the uncompressed layers. Its digest is therefore what "skopeo inspect --raw
// docker-daemon:NAME" hashes to, and not the one in the image's names by digest.
//
// Such a manifest holds the layers' sizes as tars, which only a save tells. Until an image has been saved once with this
// cache directory, Desc.Digest is empty and Desc.Size 0, unless the engine calls the image by its manifest; of an image in
// the containerd image store Desc.Config is empty. They stay so for as long as this Source lists the image, although
// Manifest and Config work: an image whose digest changed would be another one, and reading must not change a listing.
// The next Source shows them from the beginning.
//
// # What must hold
//
//   - Listing, inspecting and watching save nothing.
//   - No byte is returned that was not verified, but for a sketch, which is the engine's word: a config against the id, or against the manifest that the id leads to
//     (containerd image store); a layer against the config's diff id.
//   - What the engine sends is bounded: entries, JSON files (4 MiB), what a compressed layer expands to, and the room
//     that a save leaves on the disk. Nothing that is named in an archive becomes a path on this machine.
//   - Every question has a time limit of ten seconds, with which a listing ends; a save has one for the time in which nothing
//     comes.
//   - At most two images are saved at a time. A failure stands for five seconds before the engine is asked again.
//   - The files in the cache's directory may be removed at any time. Those that are being taken apart have no name, so
//     that nothing stays when the process is killed.
//   - A change of names adds before it removes, and never removes the last name, with which the engine would remove the
//     image.
//
// # Changes
//
// A watch follows the engine's events, and asks once a minute, because not every engine tells of every image that a
// build leaves. The stamp moves when a watch has noticed something, or this source has changed names; without a watch,
// what others do is not seen.
package daemon
