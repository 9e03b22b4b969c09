// Package fs is the file system: images of an imgsrc.Catalog as a tree that the kernel can ask for over FUSE. It knows
// go-fuse and imgsrc, and nothing of where images come from; what writes do is behind the Ops interface.
//
// # The tree
//
//	/
//	  README              a cheat sheet, made from the tables below
//	  ids/<id>/           one directory for each image
//	  images/<reference>  relative links into ids/
//	  oci/                all images as one OCI image layout (oci.go)
//	  pull, load          controls; error is the text of the last of their writes that failed
//	  events              JSON lines
//	  jobs/<n>            a JSON file for each job (jobs.go)
//	  ids/<id>/           the rows of table (table.go), and
//	    manifest-sha256-<hex>.json   further manifests over the same config
//	    annotations/  labels/        a file for each key
//	    layers/00/                   the rows of layerTable (layers.go), and
//	    layers/00/diff/  rootfs/     files out of layers (trees.go)
//	    platforms/  referrers/       links to other images' directories (links.go)
//	    export/                      README, and archives that are found by name (exportview.go, archives.go)
//
// One directory has one path. A beginning of an id, or a manifest's digest, is a link to the id's directory that is not
// listed. Whatever else means it is a relative link, as in sysfs: a directory under two names would
// move a shell's working directory, and rsync, du and grep -r are to meet it once. No link leads to a directory from
// which it can be reached again, so that find -L and rsync -aL end.
//
// A file of every image is one row of a table: a name, a number that is never used again, and a pure function of the image,
// or of what the catalog says of it (live), or of both (derived.go; lineage.go says which image was made from which). An
// index has few files of its own: the others are links to those of the platform that is meant.
//
// # Nodes and inode numbers
//
// A node id encodes where the node stands: which image, which view of it, which entry of the view (node.go). The kernel's
// requests are answered from tables by those numbers; no object is made for a node, and FORGET does nothing. The inode
// number that stat shows is a hash of the same place by names, equal in every mount. Two images' views of one layer are
// different nodes over shared data.
//
// Images, names and the blobs of oci/ are numbered in the order in which the mount meets them, which is the order of
// listings: what comes or goes moves nothing else. A number is not given again, so that a node which the kernel still has is
// never mistaken for another; what had it is dropped some time after it is gone (ledger.go, interner.go), so that a mount
// does not grow by what has been.
//
// An image for which another manifest stands than before, or whose layers are read from another (imgsrc.Entry.Nearest), gets
// another number, because its files may have others. The nodes under the old one lead where they led, as long as a source
// has that (replaced.go).
//
// # What the kernel may keep
//
// A request costs tens of microseconds and a cached answer one: the number of requests is the speed.
//
//   - OPEN, OPENDIR, FLUSH and ACCESS are answered with ENOSYS, once each. The kernel then opens files by itself, keeps
//     their pages from one open to the next, and caches every listing.
//   - What is computed from an image's manifest, config and layers alone never changes: its attributes, its pages and its
//     names are the kernel's for good.
//   - Live is the rest: ids/, images/, oci/index.json and the lists of oci/blobs/, events, jobs/, an image's directory, and the rows of
//     the table that depend on the catalog. Its
//     attributes have timeout 0. The kernel drops a file's pages when its size or modification time has moved, and a
//     listing when the directory's modification time has; so each change moves the time, by a nanosecond if the clock has
//     not moved. The kernel keeps the names in ids/ and in an image's directory for good and those in images/ for a second,
//     and is told when one is gone or means something else. Other names that can vanish have timeout 0.
//   - A listing carries attributes (READDIRPLUS), except where they cost more than a look at memory: such an entry has node
//     id 0, and the kernel asks if somebody wants to know.
//   - Of a large blob the kernel has pages before all of it is verified (early.go): if it is found wrong, the kernel is told to
//     forget them, and the name leads to another generation of the node, so that what was opened before fails. Its end waits,
//     so no reader has all of it by then.
//   - A file's bytes are pushed into the kernel's cache before they are asked for: the answer to the first read of a small
//     file is preceded by those of the files behind it, in the order of a walk (ahead.go).
//   - docker.tar and oci.tar have the image's names in them: they are live, and their time is that of their last change. What
//     may change is at their end, so that a reader who began before the change has read nothing that has moved. The kernel
//     would ask for their attributes before each read(2): it may keep those for a tenth of a second, and is told of changes (lent.go).
//   - A link's node includes its target, or the target is the same always, so the kernel may keep what a link says.
//   - What the manifest alone says does not wait for the config for longer than a second (bare.go). Its time, which is in the config,
//     may change then, so its attributes have timeout 0.
//   - Whether an image has some file may be unknown, because its manifest or config cannot be read (unread.go). Then looking for it
//     is an error, which the kernel does not keep, a listing leaves it out, and the directory's time moves when that is known.
//   - What is computed from an image and the catalog is computed for each state of the catalog in which somebody asks. Its
//     time moves only if it says something else than before.
//
// A blob of oci/ never changes, and is of 1970: it may be several images'. Its name is kept for a second.
//
// Of an index in a registry, the images that are not listed are asked for when a link in platforms/ is followed, and all of them
// when somebody first looks into oci/ (children.go).
//
// Of an image in a registry or an engine, diff.tar, diff/, changes and rootfs/ are listed only when the layers are here (remote.go). Of
// an image in an engine, what the engine tells of it is answered without having it saved (sketch.go), and oci/, which has a file that is
// called by each manifest's digest, is listed when all have been saved (ocilisted.go). So find and ls -R over a mount cost nothing.
//
// # Controls
//
// A line written to a control is executed in the write(2) that brings its newline, and its errno is the write's. The kernel
// holds the file's lock while a write runs, which is why push is always empty: the size of a file whose content may
// change cannot be asked for meanwhile. A control's time moves when a write ends, whatever came of it, because the
// kernel has put the written text into its cache. Half a line is kept for two seconds (control.go).
//
// # Names that are made
//
// A link that somebody makes below images/ or registry/ gives the image that its target leads to a name, and a renamed one
// another name (links_change.go). What the target leads to is found out within the tree (target.go): the kernel, which
// could say, holds a lock of the directory until it has the answer. For the same reason the caller's own directories are
// never waited for, and a caller that is interrupted gets up to 0.9 s: it could not tell a name that it has just made
// from one that was there. What no source stores is in memory (made.go): empty directories, and links with names that a
// program made up. The kernel moves a renamed link's node to its new name; moves.go keeps what that says true. A
// directory that is made where rmdir has removed one is another node (removals.go).
//
// Removing takes Options.AllowRemove. Files in an image's directory cannot be removed, so that no rm -r ever gets as far
// as removing the directory; rmdir alone does.
//
// # Locks
//
// FS.mu orders the states of the tree. Reads take no lock but a cache's for the moment of a look-up: the state, the list of
// images and each image's entry are replaced whole, through atomic pointers. The order is FS.mu before image.mu; the caches'
// and the interner's locks are last, and nothing is called under them. The kernel is told of vanished names by a
// goroutine of its own: a notification from within a request may wait for a lock that the request's caller holds.
package fs
