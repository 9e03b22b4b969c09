// Package blobs reads files that are known by their digests, where they are: below a directory, or inside a tar archive,
// which is read at the places where its members lie and never unpacked. The sources that keep images so (layouts,
// archives, directories of one image) are made of it.
//
// # What must hold
//
//   - Everything is opened below the directory (os.Root), or is a member of the archive; nothing but regular files is read. A
//     link inside an archive leads to another member or nowhere.
//   - No byte is returned that was not verified. Manifests and configs are read whole and hashed. A layer's file is hashed
//     once, before its first byte is returned, and again when the file is not the same any more (device, inode, place,
//     size, mtime, ctime); the images that share it share that, too. Compressed layers are verified by the pass of package
//     layer that decompresses them.
//   - Who asks for it (imgsrc.WithEarly), and reads a file from its beginning on, gets that while it is hashed, but never its
//     end, and hears what came of it: nobody has a whole file that is wrong without having got an error.
//   - Hashing runs on the store's own context: a reader who leaves does not stop it, and others wait for the same pass. What a
//     reader waits for goes before what has only been looked into.
//   - An archive that is replaced or rewritten is indexed anew by whoever opens a member next. One that is compressed as a
//     whole is decompressed once, into the cache.
package blobs
