package export

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/imgfs/imgfs/imgsrc"
)

// readBack reads an entry with the standard library's reader.
func readBack(t testing.TB, h *header, body []byte) (*tar.Header, []byte) {
	t.Helper()
	b := appendHeader(nil, h)
	if len(b)%blockSize != 0 {
		t.Fatalf("a header of %d bytes", len(b))
	}
	b = append(append(append(b, body...), padding(int64(len(body)))...), trailer[:]...)
	r := tar.NewReader(bytes.NewReader(b))
	got, err := r.Next()
	if err != nil {
		t.Fatalf("%+v: %v", h, err)
	}
	content, err := io.ReadAll(r)
	if err != nil {
		t.Fatalf("%+v: %v", h, err)
	}
	if _, err := r.Next(); err != io.EOF {
		t.Fatalf("%+v: behind it: %v", h, err)
	}
	return got, content
}

func checkHeader(t testing.TB, h *header) {
	t.Helper()
	var body []byte
	if h.size < 1<<20 {
		body = make([]byte, h.size)
	}
	got, _ := readBack(t, &header{
		name: h.name, typ: h.typ, link: h.link, mode: h.mode, uid: h.uid, gid: h.gid, size: int64(len(body)), sec: h.sec, nsec: h.nsec,
		major: h.major, minor: h.minor, xattrs: h.xattrs,
	}, body)
	xattrs := map[string]string{}
	for k, v := range got.PAXRecords {
		if name, ok := strings.CutPrefix(k, "SCHILY.xattr."); ok {
			xattrs[name] = v
		}
	}
	want := map[string]string{}
	for _, x := range h.xattrs {
		want[escapeXattr(x.Name)] = x.Value
	}
	switch {
	case got.Name != h.name, got.Linkname != h.link, got.Typeflag != h.typ, got.Mode != int64(h.mode), got.Uid != int(h.uid), got.Gid != int(h.gid),
		got.Size != int64(len(body)), !got.ModTime.Equal(time.Unix(h.sec, int64(h.nsec))), got.Devmajor != int64(h.major), got.Devminor != int64(h.minor),
		got.Uname != "", got.Gname != "", !maps.Equal(xattrs, want):
		t.Errorf("%+v is read as %+v", h, got)
	}
}

func TestHeader(t *testing.T) {
	long := strings.Repeat("d/", 40) + strings.Repeat("n", 90)
	for _, h := range []header{
		{name: "./", typ: typeDir, mode: 0o755},
		{name: "a", typ: typeRegular, mode: 0o6755, uid: 1000, gid: 1000, size: 5, sec: 1 << 30},
		{name: strings.Repeat("x", 100), typ: typeRegular},
		{name: strings.Repeat("x", 101), typ: typeRegular},
		{name: strings.Repeat("x", 155) + "/" + strings.Repeat("y", 100), typ: typeRegular},
		{name: strings.Repeat("x", 156) + "/" + strings.Repeat("y", 99), typ: typeRegular},
		{name: strings.Repeat("x", 155) + "/" + strings.Repeat("y", 99) + "/", typ: typeDir},
		{name: strings.Repeat("x", 155) + "/" + strings.Repeat("y", 100) + "/", typ: typeDir},
		{name: long, typ: typeRegular},
		{name: long + long, typ: typeSymlink, link: long + long},
		{name: "link", typ: typeLink, link: strings.Repeat("l", 100)},
		{name: "link", typ: typeSymlink, link: strings.Repeat("l", 101)},
		{name: "odd\xff\nname", typ: typeRegular},
		{name: strings.Repeat("\xff", 120), typ: typeRegular},
		{name: "ümlaut", typ: typeRegular},
		{name: "ids", typ: typeRegular, uid: 2097151, gid: 2097152},
		{name: "ids", typ: typeRegular, uid: 4294967294, gid: 4294967295},
		{name: "old", typ: typeRegular, sec: -1},
		{name: "old", typ: typeRegular, sec: -1, nsec: 999999999},
		{name: "old", typ: typeRegular, sec: -2, nsec: 500000000},
		{name: "late", typ: typeRegular, sec: 1 << 33},
		{name: "late", typ: typeRegular, sec: 1<<33 - 1},
		{name: "nano", typ: typeRegular, sec: 1700000000, nsec: 120},
		{name: "disk", typ: typeBlock, major: 4095, minor: 1<<20 - 1},
		{name: "null", typ: typeChar, major: 1, minor: 3},
		{name: "pipe", typ: typeFIFO},
		{name: "caps", typ: typeRegular, xattrs: []imgsrc.Xattr{{Name: "security.capability", Value: "\x01\x00\x00\n\x02=\x00"}, {Name: "user.a=b%3Dc", Value: "x"}}},
		{name: "much", typ: typeRegular, xattrs: []imgsrc.Xattr{{Name: "user.large", Value: strings.Repeat("v", 70000)}}},
	} {
		checkHeader(t, &h)
	}
}

func TestLargeBody(t *testing.T) {
	for _, size := range []int64{1<<33 - 1, 1 << 33, 1 << 45} {
		b := appendHeader(nil, &header{name: "x", typ: typeRegular, size: size})
		got, err := tar.NewReader(bytes.NewReader(b)).Next()
		if err != nil || got.Size != size {
			t.Errorf("size %d: %+v, %v", size, got, err)
		}
	}
}

// Each length of a record around those where its own number of digits changes.
func TestRecord(t *testing.T) {
	for n := range 1100 {
		b := appendRecord(nil, "k", strings.Repeat("v", n))
		var length int
		if _, err := fmt.Sscanf(string(b), "%d ", &length); err != nil || length != len(b) {
			t.Fatalf("%d bytes: the record of %d says %d, %v", n, len(b), length, err)
		}
	}
}

func FuzzHeader(f *testing.F) {
	f.Add("a/b", "", byte('0'), uint32(0o755), uint32(0), uint32(0), int64(0), uint32(0), "user.x", "v")
	f.Add(strings.Repeat("a/", 120), "b", byte('2'), uint32(0), uint32(1<<31), uint32(7), int64(-5), uint32(77), "user.x=y", "\x00")
	f.Fuzz(func(t *testing.T, name, link string, typ byte, mode, uid, gid uint32, sec int64, nsec uint32, xattr, value string) {
		h := header{name: strings.Trim(name, "/"), typ: '0' + typ%7, mode: mode & 0o7777, uid: uid, gid: gid, sec: sec % 1e15, nsec: nsec % 1e9}
		for _, s := range []string{h.name, link, xattr} {
			if s == "" || strings.Contains(s, "\x00") || len(s) > 10000 || strings.Trim(s, "0123456789") == "" {
				return
			}
		}
		switch h.typ {
		case typeDir:
			h.name += "/"
		case typeLink, typeSymlink:
			h.link = link
		}
		if value != "" { // the library drops what is empty
			h.xattrs = []imgsrc.Xattr{{Name: "user." + xattr, Value: value}}
		}
		checkHeader(t, &h)
	})
}
