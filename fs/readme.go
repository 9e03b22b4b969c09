package fs

import (
	"os"
	"time"
)

// programTime is the README's modification time: its text comes with the program, and changes with it.
func programTime() time.Time {
	path, err := os.Executable()
	if err != nil {
		return time.Time{}
	}
	info, err := os.Stat(path)
	if err != nil {
		return time.Time{}
	}
	return info.ModTime()
}

const readmeHead = `Container images as files.

  ids/<id>/            every image once, by its id; an unambiguous beginning of the id is a link to it (ids/8e2c859f/)
  images/<reference>   the same images by name: links into ids/ (images/docker.io/library/nginx:1.27)
  registry/<host>/<repo>:<tag>
                       any image of a registry: asked for when it is followed, its layers when they are looked into
  oci/                 all of it once more, as one OCI image layout: what to back up, and what other tools read
                       (of a Docker engine it is listed when all images have been read, and found by its name before)
  pull                 write a reference to pull: REFERENCE [platform=OS/ARCH] [all=true] [dry-run=true] [wait=false]
  load                 write the path of an archive, a layout, or a root file system's tar: PATH [name=REFERENCE] [wait=false]
  error                the text of the last failed pull or load; empty after one that succeeded
  events               what happened to this mount: JSON lines, oldest first
  jobs/<n>             operations that run, wait or have ended: JSON; write "cancel" to cancel one

In each image's directory:

`

const readmeTail = `
What an image does not have is not there: no user, no file called user. An index has a link for each platform in
platforms/, and its other files are links to those of this machine's.

A link is a link: add a slash to read what it points to, and search where the images are.

  ls images/NAME:TAG/                     the image
  jq . images/NAME:TAG/config.json        its config
  ls images/NAME:TAG/rootfs/              its files
  grep -r PATTERN ids/                    all images
  grep ' /etc/passwd$' images/NAME:TAG/layers/*/changes
                                          which layers added, changed or deleted a file
  rsync -a images/NAME:TAG/ DEST/         a copy of one
  cat images/NAME:TAG/export/docker.tar | docker load
                                          the image as one file: see export/README
  rsync -a oci/ BACKUP/                   all images, deduplicated; again, and only what is new is copied
  skopeo copy oci:oci:NAME:TAG dir:/tmp/x any image with any tool that reads OCI layouts
  echo localhost/web:2 > ids/<id>/tags    tags it
  echo -localhost/web:1 > ids/<id>/tags   untags it
  ln -s base:1 images/localhost/web:2     tags it too; ln -sfn takes the name from another image, mv gives it another
                                          name, mkdir makes room for names; with --allow-remove rm untags, and
                                          rmdir ids/<id> removes the image
  ln -s REPO:1 registry/HOST/REPO:2       another tag in that registry; no layer is sent
  echo localhost:5000/web:2 > ids/<id>/push
                                          pushes it; the write returns when the push is done
  cat ids/<id>/error                      says why a write failed
  jq . jobs/*                             how far pushes and pulls are (so does imgfs jobs)
  echo cancel > jobs/1                    cancels one
  echo quay.io/a/b:1 > pull               pulls an image; it is in ids/ when the write returns
  echo ~/Downloads/image.tar > load       loads what docker save or podman save has written
  cat error                               says why a pull or a load failed
`
