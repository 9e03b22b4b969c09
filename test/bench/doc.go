// Command bench measures, and prints what it finds as tables in Markdown. There are four parts:
//
//   - imgfs: what a user waits for, against what the kernel's own file systems need for the same work on the same bytes
//     (an overlay mount of a copy of the tree; a plain file). Each figure is a ratio of two times taken alternately in one run,
//     because absolute times drift from machine to machine and from hour to hour. Below 1 imgfs is the faster one.
//   - rootfs: an image's root file system against the kernel's overlay of it, and against the other programs that can show one:
//     fuse-overlayfs, squashfuse, archivemount, and umoci, which unpacks. What is not installed is named and left out.
//   - lazy: layers with a table of contents (eStargz, zstd:chunked) in a registry on this machine, at once and with each answer
//     late: how many bytes move, and what a file and a tar of all files take, against the same files in a gzip layer.
//   - claims: what imgfs's tree is built upon, each checked by itself with a small file system of this program's own, which
//     can answer the kernel either way and counts what it is asked. If a kernel ever disagrees, it shows here.
//
// It needs root, because it mounts overlays and drops the page cache. It leaves nothing.
package main
