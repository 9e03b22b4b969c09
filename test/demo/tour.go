package main

import (
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/imgfs/imgfs/test/images"
)

const mountpoint = "mnt"

// tour is what the demo shows. See shell.show for the notation.
var tour = []string{
	"# An image layout is a directory of blobs. Mounted, every image in it is a directory of files.",
	"ls layout",
	"imgfs mount --cache-dir cache layout mnt",
	"ls mnt",
	"find mnt/images -type l -printf '%p -> %l\\n' | cut -c 1-80",
	"ls -F mnt/images/localhost/hello:1.0/",

	"# Values are files.",
	"cd mnt/images/localhost/hello:1.0 && head env entrypoint labels/*",
	"cat mnt/images/localhost/hello:1.0/history",
	"jq? jq .config mnt/images/localhost/hello:1.0/config.json",
	"jq? jq -r '.architecture + \" \" + .created' mnt/images/localhost/*/config.json",
	"grep -rl GREETING=hello mnt/ids --include=env",

	"# Bytes are exact: digests are sha256sum's.",
	"cd mnt/images/localhost/hello:1.0 && cat digest id layers/01/diff-id",
	"cd mnt/images/localhost/hello:1.0 && sha256sum manifest.json config.json layers/01/diff.tar",
	"tar tvf mnt/images/localhost/hello:1.0/layers/01/diff.tar | head -n 4",

	"# The root file system is there as a container would see it, and so is what each layer did to it.",
	"cat mnt/images/localhost/hello:1.0/rootfs/etc/os-release",
	"ls -l mnt/images/localhost/hello:1.0/rootfs/usr/",
	"cat mnt/images/localhost/hello:1.0/layers/02/changes",
	"diff -rq mnt/images/localhost/base:1/rootfs/ mnt/images/localhost/hello:1.0/rootfs/; true",

	"# An index leads to the image for each platform, and its other files to those for this machine. A signature is found from what it signs.",
	"find mnt/images/localhost/hello:all/platforms -type l -printf '%f -> %.40l\\n' | sort",
	"cat mnt/images/localhost/hello:all/os mnt/images/localhost/hello:all/rootfs/etc/os-release",
	"cd mnt/images/localhost/hello:1.0 && cat referrers/*/artifact-type referrers/*/layers/00/note.txt",

	"# Names are links. A line in the file tags adds one, a minus removes it; an error is the write's own.",
	"echo localhost/hello:latest >mnt/images/localhost/hello:1.0/tags",
	"find mnt/images -name hello:latest -printf '%p -> %l\\n' | cut -c 1-80",
	"echo -localhost/hello:latest >mnt/images/localhost/hello:1.0/tags",
	"cat mnt/images/localhost/hello:1.0/tags",
	"fails: echo -localhost/nothing:1 >mnt/images/localhost/hello:1.0/tags",
	"cat mnt/images/localhost/hello:1.0/error",

	"# They can also be made and moved like links. Nothing can be removed, unless the mount was made with --allow-remove.",
	"cd mnt/images/localhost && ln -s hello:1.0 hello:2 && mv hello:2 hello:3 && readlink hello:3 | cut -c 1-22 && cat hello:3/tags",
	"fails: rm mnt/images/localhost/hello:3",
	"echo -localhost/hello:3 >mnt/images/localhost/hello:1.0/tags",

	"# A line in the file push copies the image: to a registry, an archive, a directory.",
	"echo REGISTRY/hello:1.0 tls-verify=false >mnt/images/localhost/hello:1.0/push",
	"curl? curl -s http://REGISTRY/v2/hello/manifests/1.0 | cmp - mnt/images/localhost/hello:1.0/manifest.json && echo same",
	"echo oci-archive:hello.tar:hello >mnt/images/localhost/hello:1.0/push",
	"tar tf hello.tar | sort",
	"jq? jq -c '[.type, .reference]' mnt/events",

	"# An image as one file, for docker load, podman load, tar: made as it is read, at any offset.",
	"ls -l mnt/images/localhost/hello:1.0/export/docker.tar && tar tf mnt/images/localhost/hello:1.0/export/docker.tar",
	"tar xOf mnt/images/localhost/hello:1.0/export/rootfs.tar etc/os-release",

	"# A backup is a copy of oci/, which is an image layout for every tool. The second one moves nothing.",
	"rsync? rsync -a mnt/oci/ backup/ && rsync -ai mnt/oci/ backup/ && du -sh backup | cut -f1",
	"skopeo? skopeo inspect --format '{{.Digest}}' oci:backup:localhost/hello:1.0 && cat mnt/images/localhost/hello:1.0/digest",
	"(cd mnt/images/localhost/hello:1.0 && sha256sum -c SHA256SUMS)",
	"cp -a mnt/images/localhost/base:1/ base && diff -r base mnt/images/localhost/base:1 && echo same",

	"imgfs umount mnt",
	"ls",
}

// makeImages makes three images of files that are on any machine that has Go: base, hello over it, and hello in Docker's format, with a
// healthcheck.
func makeImages(dir string) error {
	out, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		return fmt.Errorf("asking go for its directory: %w", err)
	}
	goroot := strings.TrimSpace(string(out))
	license, err := images.HostFile("usr/share/doc/go/LICENSE", filepath.Join(goroot, "LICENSE"))
	if err != nil {
		return err
	}
	source, err := images.Tree("usr/src/fmt", filepath.Join(goroot, "src", "fmt"), 0)
	if err != nil {
		return err
	}
	base := images.Layer{CreatedBy: "ADD base /", Entries: []images.Entry{
		images.Dir("etc"), images.File("etc/os-release", "ID=demo\nPRETTY_NAME=\"The demo\"\n"),
		images.File("etc/passwd", "root:x:0:0:root:/root:/bin/sh\n"), images.Dir("usr"), images.Dir("usr/share"),
		images.Dir("usr/share/doc"), images.Dir("usr/share/doc/go"), license,
	}}
	hello := images.Image{
		Layers: []images.Layer{
			base,
			{CreatedBy: "COPY fmt /usr/src/fmt", Entries: source},
			{CreatedBy: "ENV GREETING=hello", Empty: true},
			{CreatedBy: "RUN rm /etc/passwd", Entries: []images.Entry{images.Dir("etc"), images.Whiteout("etc/passwd")}},
		},
		Config: v1.ImageConfig{
			Env:        []string{"PATH=/usr/bin:/bin", "GREETING=hello"},
			Entrypoint: []string{"/usr/bin/hello"}, Cmd: []string{"--loud"}, WorkingDir: "/srv",
			ExposedPorts: map[string]struct{}{"8080/tcp": {}}, StopSignal: "SIGINT",
			Labels: map[string]string{"org.opencontainers.image.title": "hello", "org.opencontainers.image.version": "1.0"},
		},
		Author:      "The demo <demo@example.org>",
		Annotations: map[string]string{"org.opencontainers.image.base.name": "localhost/base:1"},
	}
	docker := hello
	docker.Docker, docker.Comment = true, "with a healthcheck"
	docker.Healthcheck = &images.Healthcheck{Test: []string{"CMD", "/usr/bin/hello", "--ping"}, Interval: 30 * time.Second, Retries: 3}

	l, err := images.Create(dir)
	if err != nil {
		return err
	}
	_, err1 := l.Add(images.Image{Layers: []images.Layer{base}, Config: v1.ImageConfig{Cmd: []string{"/bin/sh"}}}, "localhost/base:1")
	_, err2 := l.Add(hello, "localhost/hello:1.0")
	_, err3 := l.Add(docker, "localhost/hello:docker")
	return errors.Join(err1, err2, err3, relate(l, hello), l.Close())
}

// relate adds an index of two platforms, localhost/hello:all, and a note that refers to the image.
func relate(l *images.Layout, hello images.Image) error {
	var platforms []v1.Descriptor
	for _, arch := range []string{"amd64", "arm64"} {
		hello.Platform = v1.Platform{OS: "linux", Architecture: arch}
		d, err := l.Write(hello)
		if err != nil {
			return err
		}
		platforms = append(platforms, d)
	}
	if _, err := l.AddIndex(platforms, nil, "localhost/hello:all"); err != nil {
		return err
	}
	return l.AddNote(platforms[0], "note.txt", "I have looked at this image, and it is good.\n")
}
