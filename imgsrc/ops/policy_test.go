package ops

import (
	"errors"
	"strings"
	"testing"

	"github.com/imgfs/imgfs/imgsrc"
)

func TestPolicy(t *testing.T) {
	const reject = `{"default":[{"type":"reject"}]%s}`
	img := testImages(t)["oci with blobs"]
	for _, test := range []struct {
		transports string
		want       error
	}{
		{``, imgsrc.ErrDenied},
		{`,"transports":{"docker":{"":[{"type":"insecureAcceptAnything"}]}}`, imgsrc.ErrDenied},
		{`,"transports":{"oci":{"":[{"type":"insecureAcceptAnything"}]}}`, nil},
		{`,"transports":{"oci":{"/srv":[{"type":"insecureAcceptAnything"}]}}`, nil},
		{`,"transports":{"oci":{"/srv":[{"type":"insecureAcceptAnything"}],"/srv/fake":[{"type":"reject"}]}}`, imgsrc.ErrDenied},
	} {
		dir := t.TempDir()
		o, _ := newOps(t, Options{SignaturePolicy: write(t, strings.ReplaceAll(reject, "%s", test.transports))}, img)
		if err := o.Do(t.Context(), pushTo(img, "dir:"+dir+"/x")); !errors.Is(err, test.want) {
			t.Errorf("%s: %v, want %v", test.transports, err, test.want)
		}
	}
	store := func(scope string) string {
		return write(t, strings.ReplaceAll(reject, "%s", `,"transports":{"containers-storage":{"`+scope+`":[{"type":"insecureAcceptAnything"}]}}`))
	}
	src := &fakeSource{name: "containers-storage:[overlay@/srv/root+/srv/run]", images: []imgsrc.Listed{{Image: img}}}
	for scope, want := range map[string]error{"": nil, "[overlay@/srv/root]": nil, "[/srv/root]": nil, "[vfs@/srv/root]": imgsrc.ErrDenied} {
		o, _ := newOpsOn(t, Options{SignaturePolicy: store(scope)}, src)
		if err := o.Do(t.Context(), pushTo(img, "dir:"+t.TempDir()+"/x")); !errors.Is(err, want) {
			t.Errorf("scope %q of a store: %v, want %v", scope, err, want)
		}
	}
	o, _ := newOps(t, Options{SignaturePolicy: write(t, "{")}, img)
	if err := o.Do(t.Context(), pushTo(img, "dir:"+t.TempDir()+"/x")); !errors.Is(err, imgsrc.ErrDenied) {
		t.Errorf("broken policy: %v", err)
	}
}
