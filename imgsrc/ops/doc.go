// Package ops carries out what is written to the controls: tag, untag and push of an image, pull and load of the mount.
//
// It works on package imgsrc's interfaces alone. It knows nothing of a file system, of nodes or errnos, and of no
// particular backend: the image comes from a [imgsrc.Catalog], names are changed through [imgsrc.Tagger], and the bytes
// of a push are read through [imgsrc.Image].
//
// # Requests and jobs
//
// A [Request] is one write to a control. All its lines are parsed and checked before the first is carried out, so that a
// bad line changes nothing; then they run in their order until one fails.
//
// Each request is a job with a key. Whoever asks for the same key while the job runs joins it. A job whose last waiter
// has left goes on for two seconds: programs written in Go interrupt their own system calls all the time and repeat them,
// and the repeated write must find the push that it began, or its result. A job that nobody came back for is cancelled.
// A source that is about to change something, and a push to a file, a directory or a registry before its last step, ask
// first (imgsrc.Commit): while nobody waits they are kept waiting, so that nothing happens that its writer was told is not
// going to. A job whose result somebody got is forgotten, so that the same line written again is a new push. At most
// [Options].Pushes copies run at once; the others wait, and can be cancelled while they do.
//
// What takes its time is a task, too: it has a number, counted from 1, and is what jobs/ shows (task.go, tasks.go). The
// work reports to its task how many bytes of each blob it has read, of how many there are in the form in which the image's
// source offers them, and how many bytes the destination was sent, which are others where layers are recompressed: the two
// are never held against each other. A job is shown as JSON, made at most four times a second and only for who reads it.
// The last hundred jobs that have ended stay to be read. Cancelling one ends its context, with a cause that says by whom.
//
// # Names and removal
//
// A write to tags changes names in the first of the image's sources that takes them. What ln, mv and rm ask for ("link") is
// the same, but of a registry's names or of the other sources' only, as the link's place says, and in a source that has
// what is to go. "remove" takes an image out of all sources that are an imgsrc.Remover, and after it, in a store, the images
// without a name that it was made from.
//
// # Events
//
// An event is recorded when an operation has ended, when the mount begins and ends, and when a listing of a source shows
// what no operation of this mount has done (changes.go). Nothing that is read is an event.
//
// # Pushing
//
// A push is a copy.Image of go.podman.io/image with a source of this package's own over imgsrc.Image. Where the image's
// source keeps the blobs that the manifest names, those bytes are copied and every digest stays; otherwise each layer is
// offered as the uncompressed tar of its diff id, and the manifest is rewritten to say so. No lock of a store is held and
// no temporary file is made for a layer on the way.
//
// A registry is not sent what it has: see upload; nor is a layout: see present. A push to one whose failure may go away is tried again a few times, and so
// is a pull. Where not all images of an index are asked for, the one for the mount's platform is pushed.
//
// A push that signs does so before the manifest is stored: with the program gpg, because the library's own OpenPGP cannot
// sign without cgo, or by the library with a sigstore key.
//
// What is made on this machine is made whole or not at all: an archive, a directory and an image in a layout are written
// into a directory beside their place and moved into it at the end; what is left there by a push whose process was killed
// goes with the next one to the same place. Nothing that was there before is removed or replaced;
// where something is in the way the push fails before it begins. (containers-storage commits by itself.)
//
// # Pulling and loading
//
// What comes in goes to the first of the mount's sources that is a [Receiver], or a layout. A pull is a copy.Image from
// the library's own registry client, so that signatures are verified as everywhere else; short names, mirrors and
// blocked registries are those of registries.conf. A registry that keeps silent is given up as in a push, but not while
// the store is waited for: before it is asked for anything, and when all bytes are here and are unpacked.
//
// What is loaded is opened by [Options].Open as the source that it would be for a mount, and copied from there as in a
// push, after all its blobs have been verified. A tar without the members of an archive is the root file system of a
// new image: it is read once to be measured, and once more to be copied. An image that the receiver has already, by its
// id, and whole, only gets names: a second manifest of the same config would change the digest that others know it by.
// One that has come without all its names is an error that says so. Artifacts go into a layout alone (chosen.go);
// signatures are verified, and left out of a layout.
//
// A blob that the receiver has is not copied. A layout verifies it first, takes it as it lies, and is asked for it once more
// right before the image is listed: it may have no name there yet, and somebody may clean up (present.go). Nor does a layout
// have blobs compressed: the digests of a registry's or an archive's layers are the image's, compressed or not.
//
// That nothing is left of an image that did not come is the Receiver's promise.
//
// # Errors
//
// Every error that Do returns is one line that names the operation, the image and the destination, and what to do about
// it where that is known. Its condition is found with errors.Is: one of package imgsrc's, a syscall.Errno, or
// context.Canceled. Credentials are taken out of every text before it is returned, logged or recorded: userinfo and
// queries of URLs, and words that look like user:password@host.
//
// # What must hold in the program
//
// containers-storage unpacks layers in a child process that is this very program: main must call reexec.Init of
// go.podman.io/storage/pkg/reexec before anything else.
package ops
