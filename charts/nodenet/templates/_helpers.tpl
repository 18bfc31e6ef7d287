{{/*
Prefix of cluster-scoped names: `nodenet` for a release of that name.
*/}}
{{- define "nodenet.fullname" -}}
{{- if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/*
Labels. Argument: (list $ component).
*/}}
{{- define "nodenet.labels" -}}
{{- $root := index . 0 -}}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
app.kubernetes.io/part-of: nodenet
{{ include "nodenet.selector" . }}
{{- end -}}

{{/*
Labels that select pods. Argument: (list $ component).
*/}}
{{- define "nodenet.selector" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: nodenet
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{/*
Image reference. Argument: (list $ "operator" or "agent").
*/}}
{{- define "nodenet.image" -}}
{{- $root := index . 0 -}}
{{- $image := index $root.Values.image (index . 1) -}}
{{- printf "%s:%s" $image.repository ($image.tag | default $root.Chart.AppVersion) -}}
{{- end -}}

{{/*
Flags that name the API servers. Every program gets them; the check of the values hangs on them for that reason.
*/}}
{{- define "nodenet.apiServerFlags" -}}
{{- include "nodenet.check" . -}}
{{- range .Values.apiServers }}
- --api-server={{ . }}
{{- end }}
{{- end -}}

{{/*
Probes of an HTTP address. A loopback address is one of the node: that is where kubelet asks, on the host's network.
*/}}
{{- define "nodenet.probes" -}}
{{- $host := regexReplaceAll ":[0-9]+$" . "" | trimPrefix "[" | trimSuffix "]" -}}
livenessProbe:
  httpGet:
    path: /livez
    port: http
    {{- if not (has $host (list "0.0.0.0" "::")) }}
    host: {{ $host | quote }}
    {{- end }}
  periodSeconds: 10
  failureThreshold: 6
readinessProbe:
  httpGet:
    path: /readyz
    port: http
    {{- if not (has $host (list "0.0.0.0" "::")) }}
    host: {{ $host | quote }}
    {{- end }}
  periodSeconds: 5
{{- end -}}

{{- define "nodenet.port" -}}
{{- regexFind "[0-9]+$" . -}}
{{- end -}}

{{/*
The configuration file of the agents. What is empty, 0 or false in ipvs and conntrack is left as the kernel has it.
*/}}
{{- define "nodenet.agentConfiguration" -}}
verifyPeriod: {{ .Values.verifyPeriod }}
minSyncPeriod: {{ .Values.minSyncPeriod }}
drainTimeout: {{ .Values.drainTimeout }}
healthzAddress: {{ quote .Values.agent.healthzAddress }}
serviceProxy: {{ .Values.serviceProxy }}
removeServices: {{ .Values.removeServices }}
takeover: {{ .Values.takeover }}
excludeCIDRs: {{ toJson (.Values.excludeCIDRs | default list) }}
scheduler: {{ .Values.scheduler }}
masqueradeAll: {{ .Values.masqueradeAll }}
masqueradeBit: {{ .Values.masqueradeBit | int64 }}
insideMark:
  base: {{ .Values.insideMark.base | int64 }}
  firstBit: {{ .Values.insideMark.firstBit | int64 }}
  bits: {{ .Values.insideMark.bits | int64 }}
{{- range $section := list "ipvs" "conntrack" }}
  {{- $set := dict }}
  {{- range $name, $value := index $.Values $section }}
    {{- if $value }}
      {{- $_ := set $set $name (kindIs "float64" $value | ternary ($value | int64) $value) }}
    {{- end }}
  {{- end }}
  {{- if $set }}
{{ $section }}:
    {{- toYaml $set | nindent 2 }}
  {{- end }}
{{- end }}
{{- end -}}
