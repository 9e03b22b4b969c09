package ops

import (
	"strings"
	"testing"
)

// TestWithImages brings image b, as NAME, into an index that others have written.
func TestWithImages(t *testing.T) {
	for _, test := range []struct{ was, name, want string }{
		{`{"manifests":[]}`, "x", `{"manifests":[{"annotations":{REF:"x"},"digest":"b"}]}`},
		{`{"more":1}`, "", `{"manifests":[{"digest":"b"}],"more":1}`},
		{`{"manifests":[{"annotations":null,"digest":"b"}]}`, "x", `{"manifests":[{"annotations":{REF:"x"},"digest":"b"}]}`},
		{`{"manifests":[{"annotations":{REF:"y"},"digest":"b"}]}`, "x", `{"manifests":[{"annotations":{REF:"y"},"digest":"b"},{"annotations":{REF:"x"},"digest":"b"}]}`},
		{`{"manifests":[{"annotations":{REF:"x"},"digest":"a"}]}`, "x", `{"manifests":[{"digest":"a"},{"annotations":{REF:"x"},"digest":"b"}]}`},
		{`{"manifests":[{"annotations":{"more":"1",REF:"x"},"digest":"a"}]}`, "x", `{"manifests":[{"annotations":{"more":"1"},"digest":"a"},{"annotations":{REF:"x"},"digest":"b"}]}`},
		{`{"manifests":[{"annotations":{"more":1,REF:"x"},"digest":"a"}]}`, "x", `{"manifests":[{"annotations":{"more":1,REF:"x"},"digest":"a"},{"annotations":{REF:"x"},"digest":"b"}]}`},
		// As docker save and containerd write it.
		{`{"manifests":[{"annotations":{FULL:"r/x:1",REF:"1"},"digest":"a"}]}`, "r/x:1", `{"manifests":[{"digest":"a"},{"annotations":{REF:"r/x:1"},"digest":"b"}]}`},
		{`{"manifests":[{"annotations":{FULL:"r/x:1",REF:"1"},"digest":"a"}]}`, "1", `{"manifests":[{"annotations":{FULL:"r/x:1"},"digest":"a"},{"annotations":{REF:"1"},"digest":"b"}]}`},
		{`{"manifests":[{"annotations":{FULL:"r/x:1"},"digest":"b"}]}`, "y", `{"manifests":[{"annotations":{FULL:"r/x:1"},"digest":"b"},{"annotations":{REF:"y"},"digest":"b"}]}`},
		{`{"manifests":[{"annotations":{FULL:"r/x:1",REF:"1"},"digest":"b"}]}`, "r/x:1", `{"manifests":[{"annotations":{REF:"r/x:1"},"digest":"b"}]}`},
	} {
		keys := strings.NewReplacer("REF", `"org.opencontainers.image.ref.name"`, "FULL", `"io.containerd.image.name"`)
		added := `{"manifests":[{"digest":"b"}]}`
		if test.name != "" {
			added = keys.Replace(`{"manifests":[{"digest":"b","annotations":{REF:"` + test.name + `"}}]}`)
		}
		got, err := new(layoutDir).withImages([]byte(keys.Replace(test.was)), []byte(added))
		if err != nil || string(got) != keys.Replace(test.want) {
			t.Errorf("%s and %q: %s, %v", test.was, test.name, got, err)
		}
	}
}
