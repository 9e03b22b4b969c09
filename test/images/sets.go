package images

import (
	"archive/tar"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// Sample adds a handful of small images that have one of everything: localhost/base:1, localhost/app:1.0 (also :latest) over it with all
// the config's fields, a Docker-format localhost/health:docker, one image each with zstd and uncompressed layers, an index
// localhost/multi:1 for two platforms, an image without a name, and names that are no references ("latest", "a/b:c",
// "per%cent").
func Sample(l *Layout) error {
	app := App()
	base := Image{
		Layers: app.Layers[:1],
		Config: v1.ImageConfig{Env: []string{"PATH=/bin"}, Cmd: []string{"/bin/sh"}},
	}
	health := app
	health.Docker, health.Comment = true, "with a healthcheck"
	health.Healthcheck = &Healthcheck{Test: []string{"CMD", "/bin/app", "--ping"}, Interval: 30 * time.Second, Timeout: 5 * time.Second, Retries: 3}
	zst, raw := app, app
	zst.Compression, zst.Author = Zstd, "zstd"
	raw.Compression, raw.Author = None, "uncompressed"
	nameless := base
	nameless.Author = "nobody"
	for _, add := range []struct {
		Image
		names []string
	}{
		{base, []string{"localhost/base:1", "latest"}},
		{app, []string{"localhost/app:1.0", "localhost/app:latest", "a/b:c"}},
		{health, []string{"localhost/health:docker"}},
		{zst, []string{"localhost/app:zstd"}},
		{raw, []string{"localhost/app:none", "per%cent"}},
		{nameless, nil},
	} {
		if _, err := l.Add(add.Image, add.names...); err != nil {
			return err
		}
	}
	var platforms []v1.Descriptor
	for _, p := range []v1.Platform{{OS: "linux", Architecture: "amd64"}, {OS: "linux", Architecture: "arm64", Variant: "v8"}} {
		img := base
		img.Platform, img.Author = p, "multi"
		d, err := l.Write(img)
		if err != nil {
			return err
		}
		platforms = append(platforms, d)
	}
	_, err := l.AddIndex(platforms, map[string]string{"org.opencontainers.image.title": "multi"}, "localhost/multi:1")
	return err
}

// App is an image of three layers and an empty history step, with every config field, labels and annotations set, keys with blanks,
// slashes and percent signs and empty values among them.
func App() Image {
	return Image{
		Layers: []Layer{
			{CreatedBy: "/bin/sh -c #(nop) ADD base /", Entries: []Entry{
				Dir("etc"), File("etc/os-release", "ID=sample\nVERSION_ID=1\n"), File("etc/passwd", "root:x:0:0:root:/root:/bin/sh\n"),
				Dir("bin"), File("bin/sh", "#!\n").WithMode(0o755), Dir("var"), Dir("var/cache"), File("var/cache/old", "old\n"),
			}},
			{CreatedBy: "/bin/sh -c #(nop)  ENV GREETING=hello", Empty: true},
			{CreatedBy: "COPY app /bin/app", Comment: "the program", Entries: []Entry{
				Dir("bin"), File("bin/app", strings.Repeat("app\n", 5000)).WithMode(0o755), Link("bin/app-1", "bin/app"),
				Symlink("bin/app-latest", "app"), Whiteout("etc/passwd"),
			}},
			{CreatedBy: "COPY etc /etc", Entries: []Entry{
				Dir("etc"), File("etc/app.conf", "listen = 80\n").WithOwner(1000, 1000).WithMode(0o640), Opaque("var/cache"),
			}},
		},
		Config: v1.ImageConfig{
			User: "1000:1000", Env: []string{"PATH=/bin", "GREETING=hello", "EMPTY="}, Entrypoint: []string{"/bin/app", "--serve"},
			Cmd: []string{"--port", "80"}, WorkingDir: "/srv", StopSignal: "SIGINT",
			ExposedPorts: map[string]struct{}{"80/tcp": {}, "53/udp": {}}, Volumes: map[string]struct{}{"/data": {}},
			Labels: map[string]string{
				"maintainer": "A Person <a@example.org>", "org.example.two words/slash": "x", "empty": "", "100%": "per cent",
			},
		},
		Author: "A Person <a@example.org>",
		Annotations: map[string]string{
			"org.opencontainers.image.title": "app", "org.opencontainers.image.version": "1.0", "org.example/slash": "y\nz",
		},
	}
}

// Odd is an image whose layers hold what a reader of tars must bear: every type of entry, set-user-id bits, owners, nanoseconds,
// extended attributes, sparse and empty files, names that are long, not UTF-8 or not clean, a name twice, and whiteouts of things that are not there.
func Odd() Image {
	long := strings.Repeat("long/", 60) + "name"
	return Image{Layers: []Layer{
		{CreatedBy: "odd 1", Entries: []Entry{
			Dir("."), Dir("./d"), File("./d/clean-me", "1"), File("/abs", "2"), File("up/../../escape", "3"),
			File("without/parent", "4"), File("twice", "first"), File("twice", "second"), File(long, "5"),
			File("not-utf8-\xff\xfe", "6"), File("new\nline", "7"), File("empty", ""),
			File("setuid", "8").WithMode(0o4755), File("owned", "9").WithOwner(4000000, 65534),
			File("nanoseconds", "10").WithTime(Epoch.Add(123456789)),
			File("xattr", "11").WithXattr("user.note", "a\x00b").WithXattr("security.capability", "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"),
			Sparse("sparse", 1<<20, "headtail", Extent{0, 4}, Extent{1<<20 - 4, 4}),
			Device("null", tar.TypeChar, 1, 3), Device("disk", tar.TypeBlock, 8, 0), Device("pipe", tar.TypeFifo, 0, 0),
			Symlink("dangling", "/no/such"), Symlink("loop", "loop"), File("target", "12"), Link("hard", "target"),
			Dir("gone"), File("gone/file", "13"), Dir("hidden"), File("hidden/file", "14"), File("becomes-dir", "15"),
		}},
		{CreatedBy: "odd 2", Entries: []Entry{
			Whiteout("gone"), Whiteout("was-never-there"), Dir("hidden"), Opaque("hidden"), File("hidden/new", "16"),
			Dir("becomes-dir"), File("becomes-dir/file", "17"), Link("hard-from-below", "target"), File("d", "18"),
		}},
	}}
}

// Even is Odd without what is refused by the tools that unpack layers: a name twice, one that leads out of the root, and a hard
// link to a file of the layer below; and without the sparse file, whose tar those that use tar-split cannot put together again.
func Even() Image {
	img := Odd()
	img.Author = "even"
	for n := range img.Layers {
		seen := map[string]bool{}
		img.Layers[n].Entries = slices.DeleteFunc(img.Layers[n].Entries, func(e Entry) bool {
			again := seen[e.Name]
			seen[e.Name] = true
			return again || strings.Contains(e.Name, "../") || e.Name == "hard-from-below" || e.Extents != nil
		})
	}
	return img
}

// Varied adds what every source is tested with: Sample, Stargz, and localhost/odd:1, localhost/even:1 and localhost/big:1, which
// is a large file and many small ones.
func Varied(l *Layout) error {
	if err := errors.Join(Sample(l), Stargz(l)); err != nil {
		return err
	}
	big := Big(3 << 20)
	big.Layers = append(big.Layers, Files(300).Layers...)
	for _, add := range []struct {
		Image
		name string
	}{{Odd(), "odd"}, {Even(), "even"}, {big, "big"}} {
		if _, err := l.Add(add.Image, "localhost/"+add.name+":1"); err != nil {
			return err
		}
	}
	return nil
}

// Files is an image of one layer with n small files, a hundred to a directory.
func Files(n int) Image {
	var entries []Entry
	for i := range n {
		if i%100 == 0 {
			entries = append(entries, Dir(fmt.Sprintf("srv/%03d", i/100)))
		}
		text := strings.Repeat(fmt.Sprintf("%d\n", i), 1+i%200)
		entries = append(entries, File(fmt.Sprintf("srv/%03d/%02d", i/100, i%100), text))
	}
	return Image{Layers: []Layer{{CreatedBy: fmt.Sprintf("%d files", n), Entries: entries}}}
}

// Big is an image of one layer with one file of size bytes that does not compress away: numbers of a fixed generator.
func Big(size int) Image {
	data := make([]byte, size)
	x := uint64(88172645463325252)
	for i := range data {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		data[i] = byte(x)
	}
	return Image{Layers: []Layer{{CreatedBy: "one file", Entries: []Entry{File("big", string(data))}}}}
}

// Many adds n images of one tiny layer of their own each, localhost/many:0000 and so on.
func Many(l *Layout, n int) error {
	for i := range n {
		name := fmt.Sprintf("%04d", i)
		img := Image{Layers: []Layer{{CreatedBy: name, Entries: []Entry{File("name", name)}}}, Author: name}
		if _, err := l.Add(img, "localhost/many:"+name); err != nil {
			return err
		}
	}
	return nil
}
