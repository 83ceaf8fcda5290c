package supervisor

import "testing"

// FuzzStdioFile: what a checkpoint says of stdio becomes options of CRIU, so
// nothing but names of open files may come through.
func FuzzStdioFile(f *testing.F) {
	for _, seed := range []string{`{}`, `{"file[1b:a029d1]":"in"}`, `{"file[1:2]\nx":"out"}`, `{"file[1:2]":"x"}`, `[]`} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		keys, err := parseStdioFile(text)
		if err != nil {
			return
		}
		for key, name := range keys {
			if _, known := stdioFD[name]; !known || !stdioKey.MatchString(key) {
				t.Errorf("%q: %q came through", key, name)
			}
		}
	})
}
