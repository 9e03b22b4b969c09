package ops

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/imgfs/imgfs/imgsrc"
)

func TestParsePush(t *testing.T) {
	dir := t.TempDir()
	resolve := New(Options{}).resolver(Request{})
	for _, test := range []struct {
		line string
		want error  // nil: fine
		text string // the destination, or a part of the error
	}{
		{"localhost:5000/web:1", nil, "docker://localhost:5000/web:1"},
		{"docker://localhost:5000/web", nil, "docker://localhost:5000/web:latest"},
		{"quay.io/a/b@sha256:" + strings.Repeat("a", 64), nil, "docker://quay.io/a/b@sha256:" + strings.Repeat("a", 64)},
		{"nginx", nil, "docker://docker.io/library/nginx:latest"},
		{"oci:DIR/l:a/b-1.0", nil, "oci:DIR/l:a/b-1.0"},
		{"oci:DIR/l", nil, "oci:DIR/l"},
		{"oci-archive:DIR/x.tar:a", nil, "oci-archive:DIR/x.tar:a"},
		{"docker-archive:DIR/x.tar:web:1", nil, "docker-archive:DIR/x.tar:docker.io/library/web:1"},
		{"dir:DIR/a:b", nil, "dir:DIR/a:b"},
		{"dir:DIR/a/../b", nil, "dir:DIR/b"},
		{"containers-storage:localhost/x", nil, "containers-storage:localhost/x:latest"},
		{"containers-storage:[overlay@DIR/g+DIR/r:overlay.mountopt=nodev]localhost/x:1", nil, "containers-storage:[overlay@DIR/g+DIR/r:overlay.mountopt=nodev]localhost/x:1"},
		{"docker-daemon:web:1", nil, "docker-daemon:docker.io/library/web:1"},
		{"localhost:5000/web format=oci compression=zstd:chunked tls-verify=false wait=false all=true", nil, "docker://localhost:5000/web:latest"},
		{"dir:DIR/x format=v2s1", nil, "dir:DIR/x"},

		{"Foo/BAR", imgsrc.ErrInvalid, `line 1: "Foo/BAR" is not a reference: `},
		{"docker:localhost/x", imgsrc.ErrInvalid, "docker://HOST"},
		{"docker://", imgsrc.ErrInvalid, "not a reference"},
		{"https://host/x", imgsrc.ErrInvalid, "unknown transport"},
		{"sif:/x", imgsrc.ErrUnsupported, "cannot be pushed to"},
		{"oci:", imgsrc.ErrInvalid, "path is missing"},
		{"oci:x", imgsrc.ErrInvalid, "absolute path"},
		{"oci:DIR/x:a b", imgsrc.ErrInvalid, "KEY=VALUE"},
		{"oci:DIR/x:%", imgsrc.ErrInvalid, "name of an image"},
		{"docker-archive:DIR/x:A", imgsrc.ErrInvalid, "not a reference"},
		{"docker-archive:DIR/x:a@sha256:" + strings.Repeat("a", 64), imgsrc.ErrInvalid, "without a digest"},
		{"containers-storage:", imgsrc.ErrInvalid, "not a reference"},
		{"containers-storage:[x]y", imgsrc.ErrInvalid, "absolute"},
		{"containers-storage:[overlay@]y", imgsrc.ErrInvalid, "no store"},
		{"containers-storage:[/x", imgsrc.ErrInvalid, "]"},
		{"containers-storage:[DIR/g:a]b@deadbeef", imgsrc.ErrInvalid, "not a reference"},
		{"localhost/x format=docker", imgsrc.ErrInvalid, "oci, v2s2, v2s1"},
		{"localhost/x compression=xz", imgsrc.ErrInvalid, "gzip, zstd, zstd:chunked, none"},
		{"localhost/x tls-verify=no", imgsrc.ErrInvalid, "true, false"},
		{"localhost/x creds=me:s3cret", imgsrc.ErrInvalid, `unknown key "creds"; known keys are format=oci|v2s2|v2s1 compression=gzip|zstd|zstd:chunked|none all=true|false authfile=PATH tls-verify=true|false sign-by=KEY|sigstore:PATH wait=true|false`},
		{"localhost/x me:s3cret@host", imgsrc.ErrInvalid, "***@host"},
		{"localhost/x me:s3=cret@host", imgsrc.ErrInvalid, `unknown key "***@host";`},
		{"localhost/x creds=me:s3cret@host", imgsrc.ErrInvalid, `unknown key "creds";`},
		{"localhost/x format=oci format=oci", imgsrc.ErrInvalid, "twice"},
		{"localhost/x sign-by=me", nil, "docker://localhost/x:latest"},
		{"localhost/x sign-by=sigstore:DIR/key", nil, "docker://localhost/x:latest"},
		{"dir:DIR/x sign-by=me", nil, "dir:DIR/x"},
		{"localhost/x sign-by=", imgsrc.ErrInvalid, "names no key"},
		{"localhost/x sign-by=sigstore:", imgsrc.ErrInvalid, "path is missing"},
		{"oci:DIR/x sign-by=me", imgsrc.ErrUnsupported, "keeps no signatures"},
		{"docker-archive:DIR/x sign-by=me", imgsrc.ErrUnsupported, "keeps no signatures"},
		{"containers-storage:x sign-by=me", imgsrc.ErrUnsupported, "keeps no signatures"},
		{"localhost/x sign-by=sigstore:DIR/key compression=none", imgsrc.ErrUnsupported, "without one of the two"},
		{"dir:DIR/x compression=zstd sign-by=sigstore:DIR/key", imgsrc.ErrUnsupported, "without one of the two"},
		{"localhost/x authfile=a.json", imgsrc.ErrInvalid, "absolute path"},
		{"docker://me:s3cret@host/x", imgsrc.ErrInvalid, "podman login"},
		{"me:s3cret@host/x", imgsrc.ErrInvalid, "podman login"},
		{"host:1/x@sha256:1234", imgsrc.ErrInvalid, "not whole"},
		{"localhost/x authfile=DIR/missing", fs.ErrNotExist, "there is no file"},
		{"oci:DIR/l format=v2s2", imgsrc.ErrUnsupported, "cannot hold this format"},
		{"docker-archive:DIR/l format=oci", imgsrc.ErrUnsupported, "cannot hold this format"},
		{"docker-archive:DIR/l compression=gzip", imgsrc.ErrUnsupported, "compressed"},
		{"containers-storage:x compression=gzip", imgsrc.ErrUnsupported, "compressed"},
		{"containers-storage:x format=v2s1", imgsrc.ErrUnsupported, "format"},
		{"localhost/x format=v2s2 compression=zstd", imgsrc.ErrUnsupported, "format=oci"},
		{"docker-archive:DIR/l all=true", imgsrc.ErrUnsupported, "single images"},
		{"", imgsrc.ErrInvalid, "no destination"},
	} {
		words := strings.Fields(strings.ReplaceAll(test.line, "DIR", dir))
		pushes, err := parsePushes([][]string{words}, resolve)
		if test.want == nil {
			if err != nil || pushes[0].dest.String() != strings.ReplaceAll(test.text, "DIR", dir) {
				t.Errorf("%s: %v, %v", test.line, pushes, err)
			}
			continue
		}
		if !errors.Is(err, test.want) || !strings.Contains(err.Error(), test.text) || strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%s: %v, want %v: %s", test.line, err, test.want, test.text)
		}
	}
}

// TestCheckedFirst has a bad line among good ones: nothing may be pushed.
func TestCheckedFirst(t *testing.T) {
	img := smallImage(t)
	dir := t.TempDir()
	o, _ := newOps(t, Options{}, img)
	r := pushTo(img, "dir:"+dir+"/a")
	r.Lines = append(r.Lines, []string{"dir:" + dir + "/b"}, []string{"Foo/BAR"})
	err := o.Do(t.Context(), r)
	if !errors.Is(err, imgsrc.ErrInvalid) || !strings.Contains(err.Error(), `line 3: "Foo/BAR" is not a reference: `) {
		t.Error(err)
	}
	if entries, _ := os.ReadDir(dir); len(entries) > 0 {
		t.Errorf("%v", entries)
	}
	readOnly, _ := newOps(t, Options{ReadOnly: true}, img)
	if err := readOnly.Do(t.Context(), pushTo(img, "dir:"+dir+"/a")); !errors.Is(err, imgsrc.ErrReadOnly) {
		t.Error(err)
	}
}

func TestRedact(t *testing.T) {
	long := strings.Repeat("a", 64)
	for _, test := range [][2]string{
		{`Get "https://me:s3cret@host/v2/": EOF`, `Get "https://***@host/v2/": EOF`},
		{`Put "http://h/v2/x?_state=s3cret&digest=sha256%3A12": dial`, `Put "http://h/v2/x": dial`},
		{`docker://me:s3cret@host/x:1`, `docker://***@host/x:1`},
		{`docker:me:s3cret@host/x`, `***@host/x`},
		{`docker://t0ken@host/x`, `docker://***@host/x`},
		{`me:s3@cr/et@host/x`, `***@host/x`},
		{`me:s3cret@host/x@sha256:` + long, `***@host/x@sha256:` + long},
		{`(last URL "http://h/t?x=s3cret", body start "{\"token\":\"s3cret")`, `(last URL "http://h/t", unreadable answer)`},
		{`x@sha256:` + long, `x@sha256:` + long},
		{`localhost:5000/x:1@sha256:` + long + `: no`, `localhost:5000/x:1@sha256:` + long + `: no`},
		{`containers-storage:[overlay@/root+/run]localhost/x:1`, `containers-storage:[overlay@/root+/run]localhost/x:1`},
		{`https://h/sigs/x@sha256=` + long + `/signature-1: no`, `https://h/sigs/x@sha256=` + long + `/signature-1: no`},
		{`https://me:s3cret@h/x@sha256=` + long + `/signature-1`, `https://***@h/x@sha256=` + long + `/signature-1`},
		{`oci:/srv/a@b:tag`, `oci:/srv/a@b:tag`},
		{`open /home/me@work/x: no`, `open /home/me@work/x: no`},
		{"stat /tmp/docker:/user:se,cret@h.test/x:1: no such file", "stat ***@h.test/x:1: no such file"},
		{`Get "https://user:se;cr(et)@h.test/x": EOF`, `Get "https://***@h.test/x": EOF`},
		{"a:1,b:2@sha256:" + strings.Repeat("a", 64), "a:1,b:2@sha256:" + strings.Repeat("a", 64)},
	} {
		if got := redact(test[0]); got != test[1] {
			t.Errorf("%s\n got %s\nwant %s", test[0], got, test[1])
		}
		if again := redact(redact(test[0])); again != test[1] {
			t.Errorf("twice: %s", again)
		}
	}
	if got := oneLine("a\nb\x1b[31m\tc\u2028d\xff"); got != "a b [31m c d" {
		t.Errorf("%q", got)
	}
	if got := oneLine(strings.Repeat("ü", maxText)); len(got) > maxText+4 || !utf8.ValidString(got) {
		t.Errorf("%d bytes", len(got))
	}
}

// FuzzLine writes a line of any kind, with credentials somewhere in the way that people put them: no text may show them.
func FuzzLine(f *testing.F) {
	for _, line := range []string{
		"localhost:5000/web:1 tls-verify=false", "oci:/srv/x:y format=oci", "containers-storage:[overlay@/a+/b]c", "-x", "+x", "docker://",
		"docker-archive:/x:y@z wait=", "dir:", "sif:x", "a@sha256:0 =", `"\"`, "x creds=a:b", "docker-daemon:@@", "\x00", "oci-archive:::",
	} {
		f.Add(line, "s3cret", byte(0))
		f.Add(line, "s3:c@r/e\"t", byte(1))
		f.Add(line, "\x00\n ", byte(2))
		f.Add(line, "s3=c", byte(4))
	}
	img := smallImage(f)
	f.Fuzz(func(t *testing.T, line, password string, how byte) {
		secret := "SECRET" + password + "SECRET"
		words := strings.Split(line, " ")
		switch how % 6 {
		case 0:
			words[0] = "docker://me:" + secret + "@" + words[0]
		case 1:
			words[0] = "me:" + secret + "@" + words[0]
		case 2:
			words[0] = "https://me:" + secret + "@" + words[0]
		case 3:
			words = append(words, "creds=me:"+secret)
		case 4:
			words = append(words, "me:"+secret+"@host")
		case 5:
			secret = "" // as it is
		}
		src := &tagging{fakeSource: &fakeSource{name: "containers-storage:", images: []imgsrc.Listed{{Image: img}}}}
		o, log := newOpsOn(t, Options{PathInside: func(string) bool { return true }}, src)
		o.turns.free = 0 // what would be pushed waits for ever, and is cancelled
		for _, control := range []string{"push", "tags"} {
			r := Request{Control: control, Image: img.desc.ID, Lines: [][]string{words}}
			if control == "push" {
				if _, err := parsePushes(r.Lines, o.resolver(r)); err == nil {
					continue // a good line
				}
			}
			err := o.Do(t.Context(), r)
			last, _ := o.LastError(img.desc.ID)
			events, _ := o.Events()
			for _, text := range []string{fmt.Sprint(err), last, string(events), log.String()} {
				if secret != "" && strings.Contains(text, "SECRET") {
					t.Errorf("%q: %s", words, text)
				}
			}
			if strings.ContainsAny(last, "\n\x00\x1b") || !utf8.ValidString(last) || len(last) > maxText+4 {
				t.Errorf("%q", last)
			}
			if strings.Count(string(events), "\n") > 2 {
				t.Errorf("%s", events)
			}
		}
	})
}
